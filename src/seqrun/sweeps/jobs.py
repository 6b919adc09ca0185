"""Run the jobs of a multirun, alone or with others, and tell how each ended."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from seqrun.callbacks import InterruptionCallback
from seqrun.checks import ConfigError
from seqrun.config.build import build
from seqrun.records.results import RecordError, Results
from seqrun.runs.directory import is_done
from seqrun.runs.runner import in_one_line, run_experiment
from seqrun.runs.vmapped import Join, run_vmapped, runs_at_once
from seqrun.sweeps.summary import Outcome, SweepJob


def run_job(job: SweepJob, interruption: InterruptionCallback, join: Join | None = None) -> Outcome:
    """Run or continue a job of a multirun; a failure is returned as an outcome, too.

    Args:
        job: the job.
        interruption: ends the run early.
        join: as in `run_experiment`.

    Raises:
        KeyboardInterrupt: a signal ended it.
    """
    began = time.perf_counter()
    common: dict[str, Any] = {"overrides": job.overrides, "directory": job.directory}
    try:
        was_done = is_done(job.directory, job.experiment)
        if was_done:
            results = Results.read(job.directory)
        else:
            results = run_experiment(
                job.experiment, job.directory, interruption, job.overrides, join
            )
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        return Outcome(status="failed", error=in_one_line(error), **common)
    value = results.optimized(job.config)
    seconds = time.perf_counter() - began
    return Outcome(status="completed", value=value, was_done=was_done, seconds=seconds, **common)


def has_ended(job: SweepJob) -> bool:
    """Return True if `run_job` would not train: the job is done, or its directory is refused."""
    try:
        return is_done(job.directory, job.experiment)
    except (ConfigError, RecordError):
        return True


def run_jobs_vmapped(
    jobs: Sequence[SweepJob],
    interruption: InterruptionCallback,
    on_end: Callable[[SweepJob, Outcome], None],
) -> None:
    """Run jobs that share their compiled programs, each as `run_job` does.

    Args:
        jobs: at least one, of one structure (see seqrun.sweeps.grouping), each with one seed.
        interruption: ends the runs early.
        on_end: called with each job and its outcome.

    Raises:
        KeyboardInterrupt: a signal ended them.
    """

    def work_of(job: SweepJob) -> Callable[[Join], Outcome]:
        return lambda join: run_job(job, interruption, join)

    def on_end_here(place: int, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        on_end(jobs[place], outcome)

    try:
        first = build(jobs[0].experiment, jobs[0].experiment.seeds[0])
        size = runs_at_once(first)
    except Exception as error:  # each job will fail in the same way, and record it
        sys.stderr.write(f"{len(jobs)} jobs run alone: {in_one_line(error)}\n")
        for job in jobs:
            on_end(job, run_job(job, interruption))
        return
    run_vmapped(first, size, [work_of(job) for job in jobs], on_end_here)


def recorded_outcome(job: SweepJob, *, was_done: bool, otherwise: str) -> Outcome:
    """Return the outcome of a job that another process ran, from its record.

    Args:
        job: the job.
        was_done: whether it had been completed before.
        otherwise: the error if the record says neither that it completed nor why it failed.
    """
    common: dict[str, Any] = {"overrides": job.overrides, "directory": job.directory}
    try:
        results = Results.read(job.directory)
    except RecordError:
        return Outcome(status="failed", error=otherwise, **common)
    if results.status == "completed" and results.config_hash == job.experiment.hash:
        value = results.optimized(job.config)
        return Outcome(status="completed", value=value, was_done=was_done, **common)
    if results.status == "failed" and results.error:
        error = f"{results.error['type']}: {results.error['message']}"
        return Outcome(status="failed", error=" ".join(error.split()), **common)
    return Outcome(status="failed", error=otherwise, **common)

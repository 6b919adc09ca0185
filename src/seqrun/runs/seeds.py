"""Several seeds of one experiment: how they are run, and what is told meanwhile."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqrun.config.experiment import Experiment
from seqrun.records.results import RunRecord
from seqrun.runs.processes import Killed, output_in, run_in_processes, send
from seqrun.system import num_cores
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.callback import BaseCallback, Run, has_step_hook
from seqrun.training.limits import planned_samples

WORTH_PROCESSES = 100_000
"""Samples of all seeds above which processes are faster: each starts in about four seconds."""
LOG = "output.log"
"""File in a seed's directory with what its process printed."""


class SeedFailed(RuntimeError):
    """The run of a seed failed in its process; the message is that of its error."""


@dataclass(frozen=True, kw_only=True)
class SeedJob:
    """A seed of an experiment, to be run in a process of its own.

    Attributes:
        experiment: what runs.
        seed: which of its seeds.
        directory: of this seed.
    """

    experiment: Experiment
    seed: int
    directory: Path

    @property
    def config(self) -> Mapping[str, Any]:
        """The experiment as plain data."""
        return self.experiment.config


@dataclass(kw_only=True, eq=False)
class SendingCallback(BaseCallback):
    """Report the run whenever a row of the accuracy matrix was measured.

    Args:
        to: called with the record; sends it to the parent process by default.
    """

    to: Callable[[RunRecord], None] = send

    def on_after_validation(self, run: Run) -> None:
        """Send the run as it stands."""
        self.to(run.record())


class SeedReports:
    """Pass on what seeds that run at the same time have measured, and print a line for each.

    Args:
        update: takes a run's record as it stands, and whether it is completed.
    """

    def __init__(self, update: Callable[[RunRecord, bool], None]) -> None:
        self._update = update
        self._done: set[int] = set()
        self._failures: list[str] = []

    def tell(self, run: RunRecord, *, completed: bool = False) -> None:
        """Take a run as it stands."""
        if run.seed in self._done:  # sent before it ended and received after
            return
        if completed:
            self._done.add(run.seed)
        self._update(run, completed)
        measured = np.flatnonzero(~np.isnan(run.accuracy_matrix).all(1))
        task, total = int(measured.max(initial=0)), run.accuracy_matrix.shape[1]
        if task and not completed:
            mean = 100 * run.accuracy_matrix[task, :task].mean()
            told = f"seed {run.seed}: task {task}/{total}, average accuracy {mean:.1f} %"
            sys.stderr.write(f"{told}\n")

    def failed(self, seed: int, what: str) -> None:
        """Take the end of a run that failed."""
        self._failures.append(f"seed {seed}: {what}")
        sys.stderr.write(f"failed: {self._failures[-1]}\n")

    def finish(self, cause: Exception | None = None) -> None:
        """Raise SeedFailed, from `cause` if given, if any run failed."""
        if self._failures:
            raise SeedFailed("; ".join(self._failures)) from cause


def choose_strategy(choice: str, first: BaseAlgorithm, num_seeds: int) -> str:
    """Return how the seeds are run: as chosen, or as is fastest on the device.

    On a CPU in one single-threaded process per core, unless everything is done before processes
    have started. Within a process of a sweep, and for one seed, one after the other. On a GPU in
    one program (JAX only), unless a callback is to see every step. It never depends on timing.

    Args:
        choice: one of `seqrun.config.schema.STRATEGIES`.
        first: the run of the first seed.
        num_seeds: of the experiment.
    """
    if choice != "auto":
        return choice
    if num_seeds < 2:
        return "sequential"
    if first.engine_type.find_device(first.device) == "cuda":
        can = first.backend == "jax" and not any(has_step_hook(type(c)) for c in first.callbacks)
        return "vmap" if can else "sequential"
    is_alone = multiprocessing.parent_process() is None
    if not is_alone or num_cores() < 2:
        return "sequential"
    worth = planned_samples(first) * num_seeds >= WORTH_PROCESSES
    return "processes" if worth else "sequential"


def run_seeds(
    jobs: Sequence[SeedJob],
    work: Callable[[SeedJob], RunRecord | Exception | None],
    update: Callable[[RunRecord, bool], None],
) -> None:
    """Run every job in a process of its own, one per core at a time.

    Args:
        jobs: at least one.
        work: runs a job and returns its record, or the error that ended it.
        update: takes a run's record as it stands, and whether it is completed.

    Raises:
        Interrupted: a signal came; the seeds that ran have saved a checkpoint.
        SeedFailed: a seed's run failed, or its process was killed; the others have ended.
    """
    reports = SeedReports(update)

    def ended(job: SeedJob, found: RunRecord | Exception | Killed) -> None:
        if isinstance(found, RunRecord):
            reports.tell(found, completed=True)
            return
        killed = isinstance(found, Killed)
        what = "its process was killed, out of memory perhaps" if killed else found
        reports.failed(job.seed, f"{what} (in {job.directory / LOG})")

    run_in_processes(
        jobs,
        work,
        ended,
        processes=min(len(jobs), num_cores()),
        updated=reports.tell,
    )
    reports.finish()


def output_of(job: SeedJob) -> Any:
    """Return the context in which a job's process prints to the job's log."""
    return output_in(job.directory / LOG)

"""Run the seeds of one experiment, and report their progress."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqrun.config.experiment import Experiment
from seqrun.records.results import RunRecord
from seqrun.runs.processes import Killed, run_in_processes, send
from seqrun.system import num_cores
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.callback import BaseCallback, Run, has_step_hook
from seqrun.training.limits import planned_samples

WORTH_PROCESSES = 100_000
"""Training samples of all seeds from which processes pay: each takes about 4 s to start."""
LOG = "output.log"
"""File in a seed's directory with the output of its process."""


class SeedFailed(RuntimeError):
    """The run of at least one seed failed; the message has the error of each."""


@dataclass(frozen=True, kw_only=True)
class SeedJob:
    """A seed of an experiment, to be run in a process of its own.

    Attributes:
        experiment: the experiment.
        seed: one of its seeds.
        directory: the seed's directory.
    """

    experiment: Experiment
    seed: int
    directory: Path


@dataclass(kw_only=True, eq=False)
class SendingCallback(BaseCallback):
    """Send the run's record whenever a row of the accuracy matrix has been measured.

    Args:
        to: called with the record; by default it goes to the parent process.
    """

    to: Callable[[RunRecord], None] = send

    def on_after_validation(self, run: Run) -> None:
        self.to(run.record())


class SeedReports:
    """Pass on the records of seeds that run at the same time, and print a line for each.

    Args:
        update: called with a run's current record and whether it is completed.
    """

    def __init__(self, update: Callable[[RunRecord, bool], None]) -> None:
        self._update = update
        self._done: set[int] = set()
        self._failures: list[str] = []

    def take(self, run: RunRecord, *, completed: bool = False) -> None:
        """Take a run's current record."""
        if run.seed in self._done:  # this record was sent before the last one but arrived after it
            return
        if completed:
            self._done.add(run.seed)
        self._update(run, completed)
        measured = np.flatnonzero(~np.isnan(run.accuracy_matrix).all(1))
        task, total = int(measured.max(initial=0)), run.accuracy_matrix.shape[1]
        if task and not completed:
            mean = 100 * run.accuracy_matrix[task, :task].mean()
            line = f"seed {run.seed}: task {task}/{total}, average accuracy {mean:.1f} %"
            sys.stderr.write(f"{line}\n")

    def fail(self, seed: int, error: str) -> None:
        """Take the error that ended a seed's run."""
        self._failures.append(f"seed {seed}: {error}")
        sys.stderr.write(f"failed: {self._failures[-1]}\n")

    def finish(self, cause: Exception | None = None) -> None:
        """Raise SeedFailed, from `cause` if given, if any run failed."""
        if self._failures:
            raise SeedFailed("; ".join(self._failures)) from cause


def choose_strategy(choice: str, first: BaseAlgorithm, num_seeds: int) -> str:
    """Return how to run the seeds: as chosen or, with "auto", as is usually fastest.

    On a GPU: all in one program (JAX only), unless a callback must see every step. On a CPU: in
    processes, one per core, unless there is so little work that it would be done
    before they have started. In all other cases, and in a worker process of a sweep on a CPU: one
    after the other. The choice never depends on timing.

    Args:
        choice: one of `seqrun.config.schema.STRATEGIES`.
        first: the run of the first seed.
        num_seeds: number of seeds of the experiment.
    """
    if choice != "auto":
        return choice
    if num_seeds < 2:
        return "sequential"
    if first.engine_type.find_device(first.device) == "cuda":
        needs_steps = any(has_step_hook(type(c)) for c in first.callbacks)
        return "vmap" if first.backend == "jax" and not needs_steps else "sequential"
    is_worker = multiprocessing.parent_process() is not None
    if is_worker or num_cores() < 2:
        return "sequential"
    num_samples = planned_samples(first) * num_seeds
    return "processes" if num_samples >= WORTH_PROCESSES else "sequential"


def run_seeds(
    jobs: Sequence[SeedJob],
    work: Callable[[SeedJob], RunRecord | Exception | None],
    update: Callable[[RunRecord, bool], None],
) -> None:
    """Run every job in a process of its own, one per core at a time.

    Args:
        jobs: at least one.
        work: runs a job; returns its record, the error that ended it, or None after a signal.
        update: called with a run's current record and whether it is completed.

    Raises:
        Interrupted: a signal came; the seeds that ran have saved a checkpoint.
        SeedFailed: a seed's run failed, or its process was killed; the others have ended.
    """
    reports = SeedReports(update)

    def on_end(job: SeedJob, result: RunRecord | Exception | Killed) -> None:
        if isinstance(result, RunRecord):
            reports.take(result, completed=True)
            return
        killed = isinstance(result, Killed)
        error = "its process was killed, perhaps out of memory" if killed else result
        reports.fail(job.seed, f"{error} (in {job.directory / LOG})")

    run_in_processes(
        jobs,
        work,
        on_end,
        processes=min(len(jobs), num_cores()),
        on_update=reports.take,
    )
    reports.finish()

"""Several seeds of one experiment: how they are run, and what is told meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrun.callbacks.base import BaseCallback
from seqrun.processes import Killed, output_in, run_in_processes, send
from seqrun.results import RunRecord

if TYPE_CHECKING:
    from seqrun.algorithms.base import BaseAlgorithm

STRATEGIES = ("auto", "processes", "vmap", "sequential")
WORTH_PROCESSES = 100_000
"""Samples, of all seeds, from which processes pay: each starts in about four seconds."""
LOG = "output.log"
"""In a seed's directory: what its process printed."""


class SeedFailed(RuntimeError):
    """The run of a seed failed in its process; the message is that of its error."""


@dataclass(frozen=True, kw_only=True)
class SeedJob:
    """A seed of an experiment, to be run in a process of its own.

    Attributes:
        config: the plain experiment.
        seed: which of its seeds.
        directory: of this seed.
    """

    config: Mapping[str, Any]
    seed: int
    directory: Path


@dataclass(kw_only=True, eq=False)
class SendingCallback(BaseCallback):
    """Tell the parent process of every row of the accuracy matrix that was measured."""

    def on_after_validation(self, algorithm: Any) -> None:
        """Send the run as it stands."""
        send(RunRecord.of(algorithm))


def choose_strategy(choice: str, first: BaseAlgorithm, num_seeds: int) -> str:
    """Return how so many seeds are run: what is chosen, or what is fastest for the device.

    On a CPU one single-threaded process per core, unless all is done before processes have
    started; within a process of a sweep, and for one seed, one after the other; on a GPU in one
    program, which JAX alone has. Never a matter of timing.

    Args:
        choice: one of STRATEGIES.
        first: the run of the first seed.
        num_seeds: that are left to run.
    """
    if choice != "auto":
        return choice
    if num_seeds < 2:
        return "sequential"
    if first.find_device(first.device) == "cuda":
        return "vmap" if first.backend == "jax" else "sequential"
    is_alone = multiprocessing.parent_process() is None
    if not is_alone or num_processes() < 2:
        return "sequential"
    worth = planned_samples(first) * num_seeds >= WORTH_PROCESSES
    return "processes" if worth else "sequential"


def planned_samples(algorithm: BaseAlgorithm) -> int:
    """Return the samples that a run trains on, each as often as it does."""
    algorithm.benchmark.prepare(algorithm.random)
    tasks = algorithm.trained_tasks()
    return sum(algorithm.training_size(t) * algorithm.training.epochs(t) for t in tasks)


def num_processes() -> int:
    """Return the processes that work at a time: one per core."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    failures: list[str] = []
    done: set[int] = set()

    def tell(run: RunRecord, *, completed: bool) -> None:
        if run.seed in done:  # said before it ended and heard after
            return
        if completed:
            done.add(run.seed)
        update(run, completed)
        measured = np.flatnonzero(~np.isnan(run.accuracy_matrix).all(1))
        task, total = int(measured.max(initial=0)), run.accuracy_matrix.shape[1]
        if task and not completed:
            mean = 100 * run.accuracy_matrix[task, :task].mean()
            told = f"seed {run.seed}: task {task}/{total}, average accuracy {mean:.1f} %"
            sys.stderr.write(f"{told}\n")

    def ended(job: SeedJob, found: RunRecord | Exception | Killed) -> None:
        if isinstance(found, RunRecord):
            tell(found, completed=True)
            return
        killed = isinstance(found, Killed)
        what = "its process was killed, out of memory perhaps" if killed else found
        failures.append(f"seed {job.seed}: {what} (in {job.directory / LOG})")
        sys.stderr.write(f"failed: {failures[-1]}\n")

    run_in_processes(
        jobs,
        work,
        ended,
        processes=min(len(jobs), num_processes()),
        updated=lambda run: tell(run, completed=False),
    )
    if failures:
        raise SeedFailed("; ".join(failures))


def output_of(job: SeedJob) -> Any:
    """Return the context in which a job's process prints to the job's log."""
    return output_in(job.directory / LOG)

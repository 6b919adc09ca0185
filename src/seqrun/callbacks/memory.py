"""MemoryCallback: keep a MemoryMechanism up to date over the tasks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError
from seqrun.memory.mechanism import MemoryMechanism
from seqrun.plan import Chunk
from seqrun.records.checkpoint_checks import (
    CheckpointError,
    check_integers,
    check_keys,
    check_memory,
)
from seqrun.training.callback import Algorithm, BaseCallback, Run


class MemoryCallback(BaseCallback):
    """Fill a memory beside any algorithm, for a method that is written as a callback to use.

    `memory.data` is what a replay method with the same budget, policy and seed would have stored.
    A run counts the algorithm's own memory in its `memory_bytes`, not a callback's.

    Args:
        memory: to be kept up to date.

    Raises:
        ConfigError: a herding memory, which needs an algorithm that gives it features.
    """

    def __init__(self, memory: MemoryMechanism) -> None:
        """Keep `memory` up to date."""
        if memory.policy == "herding":
            raise ConfigError(
                "policy='herding': must be reservoir, ring, class_balanced or random in a "
                "MemoryCallback, which has no features"
            )
        self.memory = memory
        self._parts: list[dict[str, np.ndarray]] = []

    def check(self, algorithm: Algorithm) -> None:
        """Raise ConfigError where a step's batch is not of the task's own samples, each once."""
        if not algorithm.trains_on_task_alone:
            raise ConfigError(
                f"algo={algorithm.name}: must train on each task's own samples alone with a "
                "MemoryCallback"
            )
        glances = algorithm.steps_per_batch
        if glances != self.memory.glances:
            raise ConfigError(
                f"glances={self.memory.glances}: must be algo.glances={glances} in the memory of a "
                "MemoryCallback"
            )

    def export_state(self, run: Run) -> dict[str, Any]:
        """Return the memory and, within a task, what of it has been seen."""
        state = dict(self.memory.export_arrays())
        if not run.progress.task_is_done:
            state |= self.memory.export_progress()
            state |= {f"seen_{n}": part["index"] for n, part in enumerate(self._parts)}
        return state

    def check_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless these are samples of the stream, and a place in the task."""
        capacity = self.memory.capacity(run.algorithm.num_tasks)
        memory = [name for name in ("seen", "x", "y", "t") if name in state]
        parts = [name for name in state if name.startswith("seen_")]
        progress = [] if run.progress.task_is_done else ["occupant", "offered", "order", *parts]
        check_keys(state, (*memory, *progress))
        stored = {name: np.asarray(state[name]) for name in memory}
        check_memory(stored, run.algorithm, capacity)
        if run.progress.task_is_done:
            return
        size = run.algorithm.training_size(run.task)
        check_integers("occupant", state["occupant"], 1, size + capacity)
        check_integers("offered", state["offered"], 0, np.iinfo(np.int64).max)
        check_integers("order", state["order"], 1, size - 1)
        if len(state["occupant"]) != capacity + 1:
            raise CheckpointError(f"occupant: must have {capacity + 1} entries")
        for n in range(len(parts)):
            check_integers(f"seen_{n}", state.get(f"seen_{n}"), 2, size - 1)

    def import_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Continue with the memory of a checkpoint."""
        self.memory.import_arrays(state)
        if not run.progress.task_is_done:
            self._start_task(run)
            self.memory.import_progress(state)
            seen = [name for name in state if name.startswith("seen_")]
            self._parts = [{"index": state[f"seen_{n}"]} for n in range(len(seen))]

    def _start_task(self, run: Run) -> None:
        current = Dataset(*(a[: run.algorithm.num_current] for a in run.algorithm.replay_dataset))
        self.memory.start_task(current, run.algorithm.num_tasks)

    def on_before_epoch(self, run: Run) -> None:
        """Start anew with each task's data."""
        self._parts = []
        if run.epoch == 1:
            self._start_task(run)

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Note which samples were seen."""
        self._parts.append({"index": chunk.arrays["index"]})

    def on_after_epoch(self, run: Run) -> None:
        """Offer the epoch's samples to the memory."""
        self.memory.plan_epoch(
            self._parts, run.algorithm.random, run.task, run.epoch, batch_sizes={}
        )

    def on_after_task(self, run: Run) -> None:
        """Make the memory of the task's end."""
        self.memory.end_task(run.task, run.algorithm.random)

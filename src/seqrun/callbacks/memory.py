"""MemoryCallback: fills a MemoryMechanism during a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Fill a memory next to any algorithm, for methods that are written as callbacks.

    `memory.data` is what a replay method with the same budget, policy and seed would store. The
    run's `memory_bytes` counts the algorithm's own memory, but not this one.

    Args:
        memory: the memory to fill.

    Raises:
        ConfigError: the memory's policy is herding, which needs features from an algorithm.
    """

    def __init__(self, memory: MemoryMechanism) -> None:
        if memory.policy == "herding":
            raise ConfigError(
                "policy='herding': must be reservoir, ring, class_balanced or random in a "
                "MemoryCallback, which has no features"
            )
        self.memory = memory
        self._initial = memory.export_arrays()
        self._chunks: list[dict[str, np.ndarray]] = []

    def check(self, algorithm: Algorithm) -> None:
        """Raise ConfigError unless batches hold only the task's samples, and `glances` agree."""
        if not algorithm.trains_on_task_alone:
            raise ConfigError(
                f"algo={algorithm.name}: must train on samples of the current task only, with a "
                "MemoryCallback"
            )
        glances = algorithm.steps_per_batch
        if glances != self.memory.glances:
            raise ConfigError(
                f"glances={self.memory.glances}: must be algo.glances={glances} in the memory of a "
                "MemoryCallback"
            )

    def on_before_fit(self, run: Run) -> None:
        """Forget an earlier run."""
        self.memory.import_arrays(self._initial)

    def export_state(self, run: Run) -> dict[str, Any]:
        """Return the memory and, within a task, the samples seen in this epoch."""
        state = dict(self.memory.export_arrays())
        if not run.progress.task_is_done:
            state |= self.memory.export_progress()
            state |= {f"seen_{n}": chunk["index"] for n, chunk in enumerate(self._chunks)}
        return state

    def check_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `state` has samples of the stream and a valid progress."""
        capacity = self.memory.capacity(run.algorithm.num_tasks)
        memory = [name for name in ("seen", "x", "y", "t") if name in state]
        chunks = [name for name in state if name.startswith("seen_")]
        progress = [] if run.progress.task_is_done else ["occupant", "offered", "order", *chunks]
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
        for n in range(len(chunks)):
            check_integers(f"seen_{n}", state.get(f"seen_{n}"), 2, size - 1)

    def import_state(self, run: Run, state: Mapping[str, Any]) -> None:
        self.memory.import_arrays(state)
        if not run.progress.task_is_done:
            self._start_task(run)
            self.memory.import_progress(state)
            seen = [name for name in state if name.startswith("seen_")]
            self._chunks = [{"index": state[f"seen_{n}"]} for n in range(len(seen))]

    def _start_task(self, run: Run) -> None:
        current = Dataset(*(a[: run.algorithm.num_current] for a in run.algorithm.replay_dataset))
        self.memory.start_task(current, run.algorithm.num_tasks)

    def on_before_epoch(self, run: Run) -> None:
        """Clear the samples seen; in a task's first epoch start with its data."""
        self._chunks = []
        if run.epoch == 1:
            self._start_task(run)

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Record which samples were seen."""
        self._chunks.append({"index": chunk.arrays["index"]})

    def on_after_epoch(self, run: Run) -> None:
        """Offer the epoch's samples to the memory."""
        if self._chunks:  # none: the task has returned to an earlier epoch
            self._offer(run, run.epoch, self._chunks)

    def on_return_to_epoch(
        self, run: Run, plans: Sequence[Sequence[Mapping[str, np.ndarray]]]
    ) -> None:
        """Offer the samples of the epochs that count, and of no others."""
        self._start_task(run)
        for epoch, plan in enumerate(plans, start=1):
            self._offer(run, epoch, [{"index": segment["index"]} for segment in plan])
        self._chunks = []

    def _offer(self, run: Run, epoch: int, segments: list[dict[str, np.ndarray]]) -> None:
        self.memory.plan_epoch(segments, run.algorithm.random, run.task, epoch, batch_sizes={})

    def on_after_task(self, run: Run) -> None:
        """Update the memory at the end of the task."""
        self.memory.end_task(run.task, run.algorithm.random)

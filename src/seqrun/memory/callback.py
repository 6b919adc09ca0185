"""MemoryCallback: keep a MemoryMechanism up to date over the tasks of a run."""

from __future__ import annotations

from typing import Any

from seqrun.benchmarks import Dataset
from seqrun.callbacks.base import BaseCallback
from seqrun.checks import ConfigError
from seqrun.memory.mechanism import MemoryMechanism
from seqrun.plan import Chunk


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

    def on_before_epoch(self, algorithm: Any) -> None:
        """Start anew with each task's data."""
        self._parts: list[dict] = []
        if algorithm.epoch == 1:
            current = Dataset(*(a[: algorithm.num_current] for a in algorithm.host_pool))
            self.memory.start_task(current, algorithm.num_tasks)

    def on_after_chunk(self, algorithm: Any, chunk: Chunk) -> None:
        """Note which samples were seen."""
        self._parts.append({"index": chunk.arrays["index"]})

    def on_after_epoch(self, algorithm: Any) -> None:
        """Offer the epoch's samples to the memory."""
        self.memory.plan_epoch(
            self._parts, algorithm.random, algorithm.task, algorithm.epoch, batch_sizes={}
        )

    def on_after_task(self, algorithm: Any) -> None:
        """Make the memory of the task's end."""
        self.memory.end_task(algorithm.task, algorithm.random)

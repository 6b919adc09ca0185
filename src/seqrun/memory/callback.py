"""MemoryCallback: keep a MemoryMechanism up to date over the tasks of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from seqrun.callbacks.base import BaseCallback
from seqrun.memory.mechanism import MemoryMechanism
from seqrun.plan import Chunk


class MemoryCallback(BaseCallback):
    """Note the order in which samples are seen, and make the memory at each task's end.

    A replay algorithm runs it among its own hooks; it may also be given to any algorithm, to
    fill a memory that a callback uses.
    """

    def __init__(self, memory: MemoryMechanism) -> None:
        """Keep `memory` up to date."""
        self.memory = memory

    def on_before_epoch(self, algorithm: Any) -> None:
        """Forget the last epoch's order."""
        self._order: list[np.ndarray] = []

    def on_after_chunk(self, algorithm: Any, chunk: Chunk) -> None:
        """Note which rows were seen."""
        self._order.append(chunk.arrays["index"].ravel())

    def on_after_task(self, algorithm: Any) -> None:
        """Select from the task that has just ended."""
        features = algorithm.task_features() if self.memory.policy == "herding" else None
        self.memory.end_task(
            algorithm.host_pool,
            algorithm.num_current,
            algorithm.task,
            algorithm.random,
            np.concatenate(self._order),
            features,
        )
        algorithm.memory_bytes = self.memory.num_bytes

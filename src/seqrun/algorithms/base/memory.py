"""MemoryOwner: the base class of algorithms with a memory, which their checkpoints contain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqrun.memory.mechanism import MemoryMechanism
from seqrun.training.algorithm import BaseAlgorithm

PREFIX = "memory/"


@dataclass(kw_only=True, eq=False)
class MemoryOwner(BaseAlgorithm):
    """An algorithm with a `memory`, which is exported together with the engine's arrays."""

    def reset(self) -> None:
        super().reset()
        self.memory: MemoryMechanism = self.make_memory()

    def make_memory(self) -> MemoryMechanism:
        """Return an empty memory with the method's budget and policy."""
        raise NotImplementedError

    def export_arrays(self) -> dict[str, np.ndarray]:
        stored = {PREFIX + name: a for name, a in self.memory.export_arrays().items()}
        return super().export_arrays() | stored

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().import_arrays(arrays)
        stored = {n.removeprefix(PREFIX): a for n, a in arrays.items() if n.startswith(PREFIX)}
        self.memory.import_arrays(stored)

"""MemoryOwner: an algorithm's memory is part of what its run carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqrun.memory.mechanism import MemoryMechanism
from seqrun.training.algorithm import BaseAlgorithm

PREFIX = "memory/"


@dataclass(kw_only=True, eq=False)
class MemoryOwner(BaseAlgorithm):
    """Export `memory` beside what the engine exports."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory: MemoryMechanism = self.make_memory()

    def make_memory(self) -> MemoryMechanism:
        """Return an empty memory with the method's budget and policy."""
        raise NotImplementedError

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Add the memory to what the run carries."""
        stored = {PREFIX + name: a for name, a in self.memory.export_arrays().items()}
        return super().export_arrays() | stored

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from exported arrays, the memory among them."""
        super().import_arrays(arrays)
        stored = {n.removeprefix(PREFIX): a for n, a in arrays.items() if n.startswith(PREFIX)}
        self.memory.import_arrays(stored)

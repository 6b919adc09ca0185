"""MemoryOwner: an algorithm's memory is part of what its run carries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from seqrun.memory.mechanism import MemoryMechanism

PREFIX = "memory/"


class MemoryOwner:
    """Export `memory` beside what the engine exports; to be mixed in before an engine."""

    memory: MemoryMechanism

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Add the memory to what the run carries."""
        stored = {PREFIX + name: a for name, a in self.memory.export_arrays().items()}
        return super().export_arrays() | stored  # type: ignore[misc]

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from exported arrays, the memory among them."""
        super().import_arrays(arrays)  # type: ignore[misc]
        stored = {n.removeprefix(PREFIX): a for n, a in arrays.items() if n.startswith(PREFIX)}
        self.memory.import_arrays(stored)

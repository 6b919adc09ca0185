"""ER: Experience Replay.

Paper: Chaudhry et al. 2019, "On tiny episodic memories in continual learning", 1902.10486,
algorithm 1: one step on the current batch and a memory batch together, then the batch is offered
to the reservoir.

Loss: mean CE over the concatenation of both batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.algorithms.replay import ReplayOptions
from seqrun.checks import one_of, within
from seqrun.memory import MemoryMechanism


@dataclass(kw_only=True, eq=False)
class EROptions(ReplayOptions):
    """Take each step on the current batch and a batch of memory. Chaudhry et al. 2019 (1902.10486).

    Args:
        memory_size: samples in the reservoir, over all tasks, >= 1.
        memory_batch_size: samples replayed per step, >= 1; all that are stored if fewer.
        memory_weight: None = mean CE over the concatenation; w in [0, 1] = (1 - w) CE(batch) +
            w CE(memory), once the memory holds anything.
        observe: "first_epoch": each sample is offered to the reservoir once per task; or
            "every_epoch".

    Raises:
        ConfigError: a value out of range.
    """

    memory_size: int = 200
    memory_weight: float | None = None
    observe: str = "first_epoch"

    name: ClassVar[str] = "er"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("observe", self.observe, ("first_epoch", "every_epoch"))
        if self.memory_weight is not None:
            within("memory_weight", self.memory_weight, 0.0, 1.0)

    def make_memory(self) -> MemoryMechanism:
        """Return the reservoir."""
        return MemoryMechanism(
            policy="reservoir", memory_size=self.memory_size, observe=self.observe
        )

    def hyper(self) -> dict[str, float]:
        """Add the weight of the memory, if it is set."""
        weight = {} if self.memory_weight is None else {"memory_weight": float(self.memory_weight)}
        return super().hyper() | weight  # type: ignore[misc]

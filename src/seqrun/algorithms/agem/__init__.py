"""A-GEM: Averaged Gradient Episodic Memory.

Paper: Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM", 1812.00420, equation 11 and
algorithm 2: with g the gradient on the current batch and g_ref that on a batch of the memory of
past tasks, g <- g - (g.g_ref / g_ref.g_ref) g_ref if g.g_ref < 0; otherwise g is left untouched.

Both gradients are of the mean cross-entropy, over all parameters as one vector. The reference
forward is in train mode, as the authors' (BatchNorm normalises by the memory batch, dropout is
on), but leaves no trace: neither running statistics nor the noise of later steps depend on it.
The projection comes before training.grad_clip. Nothing is projected in the first task, whose
memory is empty.

Differs from the paper: which samples of a task are stored is an option, memory_policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.algorithms.replay import ReplayOptions, refuse_single_samples
from seqrun.checks import one_of
from seqrun.memory import MemoryMechanism

AGEM_POLICIES = ("ring", "random", "class_balanced")


@dataclass(kw_only=True, eq=False)
class AGEMOptions(ReplayOptions):
    """Let no step raise the memory's mean loss: project the gradient where it would.

    Chaudhry et al. 2019 (1812.00420), equation 11.

    Args:
        per_task_memory_samples: samples that are kept of each past task, >= 1.
        memory_batch_size: samples that g_ref is computed on, >= 1; all that are stored if fewer.
        memory_policy: which samples of a task are kept, at its end: "ring" (the last of each class
            in the last epoch's order), "random", or "class_balanced" (as many of each class, at
            random).

    Raises:
        ConfigError: a value out of range, or memory batches of one sample with BatchNorm.
    """

    per_task_memory_samples: int = 250
    memory_batch_size: int = 256
    memory_policy: str = "ring"

    name: ClassVar[str] = "agem"

    def __post_init__(self) -> None:
        one_of("memory_policy", self.memory_policy, AGEM_POLICIES)
        super().__post_init__()
        refuse_single_samples(
            self.backbone,
            per_task_memory_samples=self.per_task_memory_samples,
            memory_batch_size=self.memory_batch_size,
        )

    def make_memory(self) -> MemoryMechanism:
        """Return the memory of past tasks."""
        return MemoryMechanism(
            policy=self.memory_policy, per_task_memory_samples=self.per_task_memory_samples
        )

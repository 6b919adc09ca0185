"""A-GEM: Averaged Gradient Episodic Memory.

Paper: Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM", 1812.00420, equation 11 and
algorithm 2. With g the gradient on the current batch and g_ref the gradient on a batch from the
memory of past tasks: g <- g - (g.g_ref / g_ref.g_ref) g_ref if g.g_ref < 0, otherwise g is
unchanged.

Both are gradients of the mean cross-entropy, as one vector over all parameters. As in the authors'
code, the forward pass on memory is in train mode (BatchNorm normalises by the memory batch, dropout
is on). With BatchNorm it comes first and updates the running statistics too, unless
`reference_updates_statistics` is false; the noise of later steps does not depend on it. The
projection comes before training.grad_clip. In the first task nothing is projected, since the memory
is empty.

Differs from the paper: which samples of a task are stored is an option, memory_policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from seqrun.algorithms.replay import ReplayOptions, refuse_single_samples
from seqrun.checks import Numerics, added, boolean, one_of
from seqrun.memory import MemoryMechanism

AGEM_POLICIES = ("ring", "random", "class_balanced")


def _numerics(options: Mapping[str, Any]) -> int:
    """Return 2 if the pass on memory may update statistics, as it never did before."""
    updates = options["reference_updates_statistics"]
    return 2 if updates and options["backbone"].may_have_batch_statistics else 1


@dataclass(kw_only=True, eq=False)
class AGEMOptions(ReplayOptions):
    """Project each gradient that would increase the mean loss on memory.

    Chaudhry et al. 2019 (1812.00420), equation 11.

    Args:
        per_task_memory_samples: samples stored of each past task, >= 1.
        memory_batch_size: samples that g_ref is computed on, >= 1; if fewer are stored, all of
            them.
        memory_policy: which samples are stored at the end of a task: "ring" (the last of each class
            in the order of the last epoch), "random", or "class_balanced" (the same number of each
            class, at random).
        reference_updates_statistics: whether the pass on memory updates BatchNorm's running
            statistics, as it does for the authors, Mammoth and Avalanche; false: they follow the
            current task only. It has no effect on a network without BatchNorm.

    Raises:
        ConfigError: a value out of range, or memory batches of one sample with BatchNorm.
    """

    per_task_memory_samples: int = 250
    memory_batch_size: int = 256
    memory_policy: str = "ring"
    reference_updates_statistics: bool = added(True, before=False)

    name: ClassVar[str] = "agem"
    numerics: ClassVar[Numerics] = staticmethod(_numerics)

    def __post_init__(self) -> None:
        one_of("memory_policy", self.memory_policy, AGEM_POLICIES)
        boolean("reference_updates_statistics", self.reference_updates_statistics)
        super().__post_init__()
        refuse_single_samples(
            self.backbone,
            per_task_memory_samples=self.per_task_memory_samples,
            memory_batch_size=self.memory_batch_size,
        )

    @property
    def updates_statistics(self) -> bool:
        """Whether the pass on memory updates BatchNorm's statistics; known of a built network."""
        return self.reference_updates_statistics and self.backbone.has_batch_statistics

    def make_memory(self) -> MemoryMechanism:
        return MemoryMechanism(
            policy=self.memory_policy, per_task_memory_samples=self.per_task_memory_samples
        )

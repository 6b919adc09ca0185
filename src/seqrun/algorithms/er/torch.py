"""ER on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seqrun.training.step import Step
from seqrun.algorithms.er import EROptions
from seqrun.algorithms.replay.torch import ReplayAlgorithm, together
from seqrun.formulas.torch import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class ER(EROptions, ReplayAlgorithm):
    """Experience Replay (Chaudhry et al. 2019)."""

    def training_loss(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy over batch and memory, weighted if asked to, and logits."""
        current = len(step.batch.y)
        if "memory_weight" not in step.hyper or len(step.reads["replay"].y) == 0:
            return super().training_loss(step)
        x, y, t = together(step)
        logits = allow_classes(self.network(x), step.mask, t)
        weight = step.hyper["memory_weight"]
        on_batch = cross_entropy(logits[:current], y[:current])
        on_memory = cross_entropy(logits[current:], y[current:])
        return (1 - weight) * on_batch + weight * on_memory, logits[:current]

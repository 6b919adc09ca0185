"""A-GEM on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seqrun.algorithms.agem import AGEMOptions
from seqrun.algorithms.base import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.formulas.projection.torch import projected_by_loss
from seqrun.formulas.torch import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class AGEM(AGEMOptions, PyTorchBaseAlgorithm):
    """Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

    def on_after_backward(self, step: Step) -> None:
        """Project the gradient if it would increase the loss on memory."""
        if len(step.batches["replay"].y):
            with self.engine.without_side_effects():
                loss = self.memory_loss(step)
                step.gradients = projected_by_loss(step.gradients, step.params, loss)

    def memory_loss(self, step: Step) -> Tensor:
        """Return the mean cross-entropy on the memory batch, whose gradient is g_ref."""
        x, y, t = step.batches["replay"]
        return cross_entropy(allow_classes(self.forward(step, x), step.mask, t), y)

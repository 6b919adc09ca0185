"""A-GEM on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.algorithms.agem import AGEMOptions
from seqrun.algorithms.base import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.formulas.projection.torch import projected, projected_by_loss
from seqrun.formulas.torch import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class AGEM(AGEMOptions, PyTorchBaseAlgorithm):
    """Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

    def on_before_backward(self, step: Step) -> None:
        """Compute g_ref before g, as algorithm 2 does, if its pass updates the statistics."""
        if len(step.batches["replay"].y) and self.updates_statistics:
            with self.engine.without_side_effects(restore_statistics=False):
                values = torch.autograd.grad(self.memory_loss(step), list(step.params.values()))
            step.cache["reference"] = dict(zip(step.params, values, strict=True))

    def on_after_backward(self, step: Step) -> None:
        """Project the gradient if it would increase the loss on memory."""
        if "reference" in step.cache:
            step.gradients = projected(step.gradients, step.cache["reference"])
        elif len(step.batches["replay"].y):
            with self.engine.without_side_effects():
                loss = self.memory_loss(step)
                step.gradients = projected_by_loss(step.gradients, step.params, loss)

    def memory_loss(self, step: Step) -> Tensor:
        """Return the mean cross-entropy on the memory batch, whose gradient is g_ref."""
        x, y, t = step.batches["replay"]
        return cross_entropy(allow_classes(self.forward(step, x), step.mask, t), y)

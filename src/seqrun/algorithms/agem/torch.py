"""A-GEM on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.algorithms.agem import AGEMOptions
from seqrun.algorithms.base import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.formulas.torch import allow_classes, cross_entropy, projected


@dataclass(kw_only=True, eq=False)
class AGEM(AGEMOptions, PyTorchBaseAlgorithm):
    """Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

    def on_after_backward(self, step: Step) -> None:
        """Project the gradient where it would raise the loss of memory."""
        if len(step.batches["replay"].y):
            step.gradients = projected(step.gradients, self.reference_gradient(step))

    def reference_gradient(self, step: Step) -> dict[str, Tensor]:
        """Return g_ref, of the mean cross-entropy on the memory batch."""
        x, y, t = step.batches["replay"]
        with self.engine.without_side_effects():
            loss = cross_entropy(allow_classes(self.forward(step, x), step.mask, t), y)
            values = torch.autograd.grad(loss, list(step.params.values()))
        return dict(zip(step.params, values, strict=True))

"""DER and DER++ on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrun.training.step import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.der import DEROptions, DERPPOptions, DERState
from seqrun.formulas.torch import allow_classes, cross_entropy, set_rows


@dataclass(kw_only=True, eq=False)
class DER(DEROptions, PyTorchBaseAlgorithm):
    """Dark Experience Replay (Buzzega et al. 2020)."""

    def initial_state(self) -> DERState:
        """Return empty slots."""
        size = (self.memory_size, self.benchmark.num_classes)
        return DERState(torch.zeros(size, device=self._device))

    def training_loss(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the batch's cross-entropy, and its logits of all classes."""
        logits = self.network(step.batch.x)
        allowed = allow_classes(logits, step.mask, step.batch.t)
        return cross_entropy(allowed, step.batch.y), logits

    def replay_loss(self, step: Step) -> Tensor:
        """Return what memory adds to the loss."""
        logits = self.network(step.reads["replay"].x)
        stored = step.state.logits[step.arrays["replay_slot"]]
        return step.hyper["alpha"] * (logits - stored).square().mean()

    def on_after_backward(self, algorithm: Any, step: Step) -> None:
        """Add the gradient of memory's loss, then store the batch's logits."""
        if len(step.reads["replay"].y):
            added = torch.autograd.grad(self.replay_loss(step), list(self.params.values()))
            torch._foreach_add_(list(step.gradients.values()), added)
        set_rows(step.state.logits, step.arrays["write_slot"], step.logits)
        step.logits = allow_classes(step.logits, step.mask, step.batch.t)


@dataclass(kw_only=True, eq=False)
class DERPP(DERPPOptions, DER):
    """Dark Experience Replay ++ (Buzzega et al. 2020)."""

    def replay_loss(self, step: Step) -> Tensor:
        """Return what memory adds to the loss."""
        x, y, t = step.reads["replay_labels"]
        distance = super().replay_loss(step)
        logits = allow_classes(self.network(x), step.mask, t)
        return distance + step.hyper["beta"] * cross_entropy(logits, y)

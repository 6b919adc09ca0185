"""DER and DER++ on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.algorithms.base import Losses, Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.der import DEROptions, DERPPOptions, DERState
from seqrun.formulas.torch import allow_classes, cross_entropy, set_rows


@dataclass(kw_only=True, eq=False)
class DER(DEROptions, PyTorchBaseAlgorithm):
    """Dark Experience Replay (Buzzega et al. 2020)."""

    def initial_state(self) -> DERState:
        size = (self.memory_size, self.benchmark.num_classes)
        return DERState(torch.zeros(size, device=self.engine.device))

    def losses(self, step: Step) -> Losses:
        """L = CE(h(x), y) + alpha |h(x') - z'|^2."""
        x, y, t = step.batch
        raw = self.forward(step, x)
        step.cache["logits"] = raw.detach()
        logits = allow_classes(raw, step.mask, t)
        ce = total = cross_entropy(logits, y)
        if len(step.batches["replay"].y):
            total = ce + self.replay_loss(step)
        return Losses(task=ce, total=total, logits=logits)

    def replay_loss(self, step: Step) -> Tensor:
        """Return alpha |h(x') - z'|^2."""
        logits = self.forward(step, step.batches["replay"].x)
        stored = step.state.logits[step.arrays["replay_slot"]]
        return step.hparams["alpha"] * (logits - stored).square().mean()

    def on_after_backward(self, step: Step) -> None:
        """Store the logits of the samples that enter the reservoir."""
        set_rows(step.state.logits, step.arrays["write_slot"], step.cache["logits"])


@dataclass(kw_only=True, eq=False)
class DERPP(DERPPOptions, DER):
    """Dark Experience Replay ++ (Buzzega et al. 2020)."""

    def replay_loss(self, step: Step) -> Tensor:
        """Return alpha |h(x') - z'|^2 + beta CE(h(x''), y'')."""
        distance = super().replay_loss(step)
        x, y, t = step.batches["replay_labels"]
        logits = allow_classes(self.forward(step, x), step.mask, t)
        return distance + step.hparams["beta"] * cross_entropy(logits, y)

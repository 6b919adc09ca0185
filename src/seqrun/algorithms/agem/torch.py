"""A-GEM on PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrun.algorithms.agem import AGEMOptions
from seqrun.training.step import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.formulas.torch import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class AGEM(AGEMOptions, PyTorchBaseAlgorithm):
    """Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

    def on_after_backward(self, algorithm: Any, step: Step) -> None:
        """Project the gradient where it would raise the loss of memory."""
        x, y, t = step.reads["replay"]
        if not len(y):
            return
        with self._without_trace():
            loss = cross_entropy(allow_classes(self.network(x), step.mask, t), y)
            values = torch.autograd.grad(loss, list(self.params.values()))
        step.gradients = projected(step.gradients, dict(zip(self.params, values, strict=True)))

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Leave BatchNorm statistics, and what later steps draw as noise, as they are."""
        before = [statistic.clone() for statistic in self.stats.values()]
        devices = [self._device] if self.device_kind == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=self.backbone.is_noisy):
            yield
        for statistic, value in zip(self.stats.values(), before, strict=True):
            statistic.copy_(value)


def projected(gradients: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return g - (g.r / r.r) r if g.r < 0, else g to the bit; also g where r = 0."""
    pairs = [(g, reference[name]) for name, g in gradients.items()]
    product = torch.stack([(g * r).sum() for g, r in pairs]).sum()
    square = torch.stack([r.square().sum() for _, r in pairs]).sum()
    excess = product.clamp(max=0) / square.clamp(min=torch.finfo(square.dtype).tiny)
    return {name: g - excess * reference[name] for name, g in gradients.items()}

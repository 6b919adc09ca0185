"""ER on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.algorithms.base.step import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.er import EROptions
from seqrun.formulas.torch import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class ER(EROptions, PyTorchBaseAlgorithm):
    """Experience Replay (Chaudhry et al. 2019)."""

    def training_loss(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy over batch and memory, and the batch's logits."""
        x, y, t = (torch.cat(pair) for pair in zip(step.batch, step.reads["replay"], strict=True))
        logits = allow_classes(self.module(x), step.mask, t)
        current = len(step.batch.y)
        if "memory_weight" in step.hyper and len(y) > current:
            weight = step.hyper["memory_weight"]
            on_batch = cross_entropy(logits[:current], y[:current])
            on_memory = cross_entropy(logits[current:], y[current:])
            return (1 - weight) * on_batch + weight * on_memory, logits[:current]
        return cross_entropy(logits, y), logits[:current]

"""ReplayAlgorithm for PyTorch: a new replay method states its memory alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.training.step import Batch, Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.replay import ReplayOptions
from seqrun.formulas.torch import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class ReplayAlgorithm(ReplayOptions, PyTorchBaseAlgorithm):
    """Take each step on the batch and a batch of memory; a child implements `make_memory`."""

    def training_loss(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy over batch and memory, and the batch's logits."""
        x, y, t = together(step)
        logits = allow_classes(self.network(x), step.mask, t)
        return cross_entropy(logits, y), logits[: len(step.batch.y)]


def together(step: Step) -> Batch:
    """Return the batch and what is replayed with it, one after the other."""
    pairs = zip(step.batch, step.reads["replay"], strict=True)
    return Batch(*(torch.cat(pair) for pair in pairs))

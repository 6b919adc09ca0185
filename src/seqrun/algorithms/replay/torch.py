"""ReplayAlgorithm for PyTorch: a new replay method only defines its memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from seqrun.algorithms.base import Batch, Losses, Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.replay import ReplayOptions
from seqrun.formulas.torch import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class ReplayAlgorithm(ReplayOptions, PyTorchBaseAlgorithm):
    """Train on the batch and a memory batch together; a subclass implements `make_memory`."""

    def losses(self, step: Step) -> Losses:
        """L = CE(h(x), y) over batch and memory together."""
        x, y, t = with_replay(step)
        logits = allow_classes(self.forward(step, x), step.mask, t)
        loss = cross_entropy(logits, y)
        return Losses(task=loss, total=loss, logits=logits[: len(step.batch.y)])


def with_replay(step: Step) -> Batch:
    """Return the batch and its replayed samples, concatenated."""
    pairs = zip(step.batch, step.batches["replay"], strict=True)
    return Batch(*(torch.cat(pair) for pair in pairs))

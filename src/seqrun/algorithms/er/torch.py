"""ER on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from seqrun.algorithms.base import Losses, Step
from seqrun.algorithms.er import EROptions
from seqrun.algorithms.replay.torch import ReplayAlgorithm, with_replay
from seqrun.formulas.torch import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class ER(EROptions, ReplayAlgorithm):
    """Experience Replay (Chaudhry et al. 2019)."""

    def losses(self, step: Step) -> Losses:
        """L = CE over batch and memory, or (1 - w) CE(batch) + w CE(memory)."""
        if "memory_weight" not in step.hparams or len(step.batches["replay"].y) == 0:
            return super().losses(step)
        current, w = len(step.batch.y), step.hparams["memory_weight"]
        x, y, t = with_replay(step)
        logits = allow_classes(self.forward(step, x), step.mask, t)
        on_batch = cross_entropy(logits[:current], y[:current])
        on_memory = cross_entropy(logits[current:], y[current:])
        loss = (1 - w) * on_batch + w * on_memory
        return Losses(task=loss, total=loss, logits=logits[:current])

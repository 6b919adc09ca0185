"""LFL on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrun.algorithms.base import Losses, Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.lfl import CLASSIFIER, LFLOptions
from seqrun.formulas.torch import allow_classes, cross_entropy
from seqrun.plan import Chunk


@dataclass(kw_only=True, eq=False)
class LFL(LFLOptions, PyTorchBaseAlgorithm):
    """Less-Forgetting Learning (Jung et al. 2016)."""

    def on_before_chunk(self, chunk: Chunk) -> None:
        """Copy the old network into a module, which is cheaper to call than `encode`."""
        self._old: Any = self.engine.frozen_copy(self.state.params, self.state.stats)

    def losses(self, step: Step) -> Losses:
        """L = CE(h(x), y) + lambda * factor * mean |f(x; old) - f(x; new)|^2."""
        x, y, t = step.batch
        features, target = self.training_features(step, x), self._old.encode(x)
        logits = allow_classes(self.classify(step, features), step.mask, t)
        ce = cross_entropy(logits, y)
        squares = (features - target) ** 2
        distances = squares.sum(1) if self.reduction == "sum" else squares.mean(1)
        weight = step.hparams["lfl_lambda"] * step.hparams["factor"]
        return Losses(task=ce, total=ce + weight * distances.mean(), logits=logits)

    @torch.no_grad()
    def on_after_backward(self, step: Step) -> None:
        """Set the gradient of frozen outputs to 0, so that it does not affect clipping."""
        before = {n: p.clone() for n, p in step.params.items() if n.startswith(CLASSIFIER)}
        masked = {
            n: step.gradients[n].masked_fill(_frozen(step, p), 0.0) for n, p in before.items()
        }
        step.gradients = step.gradients | masked
        step.cache["classifier"] = before

    @torch.no_grad()
    def on_after_optimizer_step(self, step: Step) -> None:
        """Restore frozen outputs, which momentum or weight decay may have changed."""
        for name, before in step.cache["classifier"].items():
            parameter = step.params[name]
            parameter.copy_(torch.where(_frozen(step, parameter), before, parameter))


def _frozen(step: Step, parameter: Tensor) -> Tensor:
    """Return the frozen outputs as a mask of the classifier's (C, in) weight or (C,) bias."""
    return step.state.frozen.reshape(-1, *[1] * (parameter.ndim - 1))

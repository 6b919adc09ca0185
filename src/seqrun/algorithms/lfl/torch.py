"""LFL on PyTorch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrun.training.step import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.lfl import CLASSIFIER, LFLOptions, LFLState
from seqrun.formulas.parameters.torch import canonical_names
from seqrun.formulas.torch import allow_classes, cross_entropy
from seqrun.plan import Chunk


@dataclass(kw_only=True, eq=False)
class LFL(LFLOptions, PyTorchBaseAlgorithm):
    """Less-Forgetting Learning (Jung et al. 2016)."""

    def initial_state(self) -> LFLState:
        """Return a copy of the network, and what of its classifier is to be frozen."""
        frozen = torch.from_numpy(self.trained_outputs()).to(self._device)
        return LFLState(*self.snapshot(), frozen)

    def on_after_task(self, algorithm: Any) -> None:
        """Keep the network as it is before the next task."""
        self.state = self.initial_state()

    def on_before_chunk(self, algorithm: Any, chunk: Chunk) -> None:
        """Make the state's network one that can be called: in eval mode, without gradients."""
        self._old: Any = copy.deepcopy(self.module).eval().requires_grad_(False)
        params, stats = canonical_names(self._old)
        for name, value in (self.state.params | self.state.stats).items():
            (params | stats)[name].copy_(value)

    def backward(self, step: Step) -> None:
        """Compute the task loss, and the gradient of it plus the distance to the old features."""
        network: Any = self.module
        features = network.encode(step.batch.x)
        logits = allow_classes(network.classify(features), step.mask, step.batch.t)
        loss = cross_entropy(logits, step.batch.y)
        squares = (features - self._old.encode(step.batch.x)) ** 2
        distances = squares.sum(1) if self.reduction == "sum" else squares.mean(1)
        total = loss + step.hyper["lfl_lambda"] * step.hyper["factor"] * distances.mean()
        values = torch.autograd.grad(total, list(self.params.values()))
        step.loss, step.logits = loss.detach(), logits.detach()
        step.gradients = dict(zip(self.params, values, strict=True))

    @torch.no_grad()
    def on_after_backward(self, algorithm: Any, step: Step) -> None:
        """Give frozen outputs no gradient, so that they take no part in clipping."""
        before = {n: p.clone() for n, p in step.params.items() if n.startswith(CLASSIFIER)}
        trained = {n: step.gradients[n].masked_fill(_rows(step, p), 0.0) for n, p in before.items()}
        step.gradients = step.gradients | trained
        step.saved["classifier"] = before

    @torch.no_grad()
    def on_after_optimizer_step(self, algorithm: Any, step: Step) -> None:
        """Put frozen outputs back, which momentum or weight decay may have moved."""
        for name, before in step.saved["classifier"].items():
            parameter = step.params[name]
            parameter.copy_(torch.where(_rows(step, parameter), before, parameter))


def _rows(step: Step, parameter: Tensor) -> Tensor:
    """Return the frozen outputs as a mask of the classifier's (C, in) weight or (C,) bias."""
    return step.state.frozen.reshape(-1, *[1] * (parameter.ndim - 1))

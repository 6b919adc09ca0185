"""MAS on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.algorithms.mas import MASOptions
from seqrun.algorithms.regularization import PenaltyState
from seqrun.algorithms.regularization.torch import RegularizationAlgorithm
from seqrun.formulas.per_sample.torch import per_sample_power_sum

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class MAS(MASOptions, RegularizationAlgorithm):
    """Memory Aware Synapses (Aljundi et al. 2018)."""

    def calculate_parameter_importance(self) -> Tensors:
        """Return the sensitivity of the outputs on the task's training inputs."""
        size = self.importance_batch_size or self.benchmark.eval_batch_size
        total = {n: torch.zeros_like(p) for n, p in self.params.items()}
        inputs, _, tasks = (a[: self.num_current] for a in self.engine.dataset)
        for x, t in zip(inputs.split(size), tasks.split(size), strict=True):
            for name, term in self._sensitivity(self.inputs(x), t).items():
                total[name] += term.detach()
        return {n: omega / self.num_current for n, omega in total.items()}

    def _sensitivity(self, x: Tensor, t: Tensor) -> Tensors:
        if self.importance_batch_size is None:
            return per_sample_power_sum(self.module, x, self._squared_norms, (t,), 1)
        norms = self._squared_norms(self.module(x), t)
        gradients = torch.autograd.grad(norms.sum(), list(self.params.values()))
        return {n: g.abs() for n, g in zip(self.params, gradients, strict=True)}

    def _squared_norms(self, logits: Tensor, t: Tensor) -> Tensor:
        """Return the (B,) squared L2 norms of the outputs that the mask allows."""
        mask = self.engine.mask
        outputs = logits if mask is None else torch.where(mask[t], logits, 0.0)
        return (outputs**2).sum(1)

    def consolidate(self, importance: Tensors) -> PenaltyState:
        """Combine the task's importance with the past importance and move the anchor."""
        past, new = self.weights
        total = {n: past * o + new * importance[n] for n, o in self.state.importance.items()}
        anchor = {n: p.detach().clone() for n, p in self.params.items()}
        return self.state._replace(anchor=anchor, importance=total)

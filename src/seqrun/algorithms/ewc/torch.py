"""EWC on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.algorithms.base import Batch, Step
from seqrun.algorithms.ewc import (
    RUNNING_DECAY,
    RUNNING_EVERY,
    EWCOptions,
    EWCState,
    OnlineEWCOptions,
)
from seqrun.algorithms.ewc.samples import fisher_rows, label_draws
from seqrun.algorithms.regularization.torch import RegularizationAlgorithm
from seqrun.formulas.per_sample.torch import per_sample_power_sum
from seqrun.formulas.torch import allow_classes, completed_square, cross_entropy

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class EWC(EWCOptions, RegularizationAlgorithm):
    """Elastic Weight Consolidation (Kirkpatrick et al. 2017)."""

    def initial_state(self) -> EWCState:
        """Return zero importance, anchored at the initial weights."""
        anchor, importance = super().initial_state()
        running = dict(importance) if self.fisher_running else {}
        count = torch.zeros((), dtype=torch.int32) if self.fisher_running else None
        return EWCState(anchor, importance, dict(running), running, count)

    def calculate_parameter_importance(self) -> Tensors:
        """Return the Fisher information of the task's training data."""
        if self.fisher_running:
            values = torch.cat([f.flatten() for f in self.state.running.values()])
            low, high = values.min(), values.max()
            span = (high - low).clamp(min=torch.finfo(values.dtype).tiny)
            return {n: (f - low) / span for n, f in self.state.running.items()}
        rows = self.engine.to_device(fisher_rows(self, self.num_current))
        draws = self.engine.to_device(label_draws(self, len(rows)))
        batched = self.fisher == "batched"
        size = self.rows_per_batch if batched else self.benchmark.eval_batch_size
        terms = self._squared_batch_gradient if batched else self._squared_sample_gradients
        total = {n: torch.zeros_like(p) for n, p in self.params.items()}
        for row, draw in zip(rows.split(size), draws.split(size), strict=True):
            for name, term in terms(row, draw).items():
                total[name] += term.detach()
        parts = len(rows.split(size)) if batched else len(rows)
        return {n: f / parts for n, f in total.items()}

    def _squared_sample_gradients(self, row: Tensor, draw: Tensor) -> Tensors:
        x, y, t = self._samples(row)
        if self.fisher != "exact":
            return per_sample_power_sum(self.module, x, self._losses, (y, t, draw), 2)
        every = [torch.full_like(y, c) for c in range(self.benchmark.num_classes)]
        terms = [per_sample_power_sum(self.module, x, self._losses, (c, t, draw), 2) for c in every]
        return {n: torch.stack([term[n] for term in terms]).sum(0) for n in terms[0]}

    def _samples(self, row: Tensor) -> Batch:
        x, y, t = (a[row] for a in self.engine.dataset)
        return Batch(self.inputs(x), y, t)

    def _losses(self, logits: Tensor, y: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        """Return the (B,) losses whose squared gradients are averaged; `y`: true, or of "exact"."""
        allowed = allow_classes(logits, self.engine.mask, t)
        p = allowed.detach().softmax(1)
        if self.fisher == "pred":
            y = p.argmax(1)
        elif self.fisher == "sample":
            y = (p.cumsum(1) < draw[:, None]).sum(1).clamp(max=p.shape[1] - 1)
        losses = torch.nn.functional.cross_entropy(allowed, y, reduction="none")
        if self.fisher == "exact" or self.fisher_weight == "p":
            losses = losses * p.gather(1, y[:, None])[:, 0].sqrt()  # squared, it is the weight p
        return losses

    def _squared_batch_gradient(self, row: Tensor, draw: Tensor) -> Tensors:
        x, y, t = self._samples(row)
        loss = cross_entropy(allow_classes(self.module(x), self.engine.mask, t), y)
        gradients = torch.autograd.grad(loss, list(self.params.values()))
        return {n: g**2 for n, g in zip(self.params, gradients, strict=True)}

    def consolidate(self, importance: Tensors) -> EWCState:
        """Merge the task's penalty with the past ones', and start a new running Fisher."""
        anchor, total = self.merge(importance)
        return self.initial_state()._replace(anchor=anchor, importance=total)

    def merge(self, importance: Tensors) -> tuple[Tensors, Tensors]:
        """Return anchor and importance of all past tasks; the running Fisher's of the latest."""
        state, params = self.state, {n: p.detach().clone() for n, p in self.params.items()}
        if self.fisher_running:
            return params, importance
        return completed_square(state.anchor, state.importance, params, importance)

    @torch.no_grad()
    def on_after_backward(self, step: Step) -> None:
        """Follow the running Fisher, from the task loss's gradient, then add the penalty's."""
        if self.fisher_running:
            state = step.state
            squares = {n: state.squares[n] + g**2 for n, g in step.gradients.items()}
            running, count = state.running, state.count + 1
            if count % RUNNING_EVERY == 0:
                rate = (1 - RUNNING_DECAY) / RUNNING_EVERY
                running = {n: RUNNING_DECAY * running[n] + rate * s for n, s in squares.items()}
                squares = {n: torch.zeros_like(s) for n, s in squares.items()}
            step.state = state._replace(squares=squares, running=running, count=count)
        super().on_after_backward(step)


@dataclass(kw_only=True, eq=False)
class OnlineEWC(OnlineEWCOptions, EWC):
    """Online EWC: one anchor, and importance that fades (Schwarz et al. 2018)."""

    def merge(self, importance: Tensors) -> tuple[Tensors, Tensors]:
        """Return the parameters as the anchor, and gamma F + F_t."""
        faded = {n: self.gamma * f + importance[n] for n, f in self.state.importance.items()}
        return {n: p.detach().clone() for n, p in self.params.items()}, faded

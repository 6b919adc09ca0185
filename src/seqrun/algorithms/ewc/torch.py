"""EWC on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.algorithms.base import Batch, Step
from seqrun.algorithms.ewc import EWCOptions, EWCState, OnlineEWCOptions
from seqrun.algorithms.ewc.fisher import fisher_rows, label_draws
from seqrun.algorithms.ewc.fisher.torch import (
    label_losses,
    normalized,
    running_state,
    unit_scaled,
    updated,
)
from seqrun.algorithms.regularization.torch import RegularizationAlgorithm
from seqrun.formulas.per_sample.torch import per_sample_power_sum
from seqrun.formulas.torch import allow_classes, completed_square, cross_entropy

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class EWC(EWCOptions, RegularizationAlgorithm):
    """Elastic Weight Consolidation (Kirkpatrick et al. 2017)."""

    def initial_state(self) -> EWCState:
        anchor, importance = super().initial_state()
        running = dict(importance) if self.fisher_running else {}
        device = self.engine.device
        count = torch.zeros((), dtype=torch.int32, device=device) if self.fisher_running else None
        offset = {n: torch.zeros_like(p) for n, p in anchor.items()} if self.has_offset else {}
        return EWCState(anchor, importance, dict(running), running, count, offset)

    def calculate_parameter_importance(self) -> Tensors:
        """Return the Fisher information of the task's training data."""
        if self.fisher_running:
            return unit_scaled(self.state.running)
        rows = self.engine.to_device(fisher_rows(self, self.num_current))
        draws = self.engine.to_device(label_draws(self, len(rows)))
        batched = self.fisher == "batched"
        size = self.rows_per_batch if batched else self.benchmark.eval_batch_size
        terms = self._squared_batch_gradient if batched else self._squared_sample_gradients
        total = {n: torch.zeros_like(p) for n, p in self.params.items()}
        for row, draw in zip(rows.split(size), draws.split(size), strict=True):
            x, y, t = (a[row] for a in self.engine.dataset)
            for name, term in terms(Batch(self.inputs(x), y, t), draw).items():
                total[name] += term.detach()
        count = len(rows.split(size)) if batched else len(rows)
        return {n: f / count for n, f in total.items()}

    def _squared_sample_gradients(self, batch: Batch, draw: Tensor) -> Tensors:
        x, y, t = batch

        def losses(logits: Tensor, y: Tensor, t: Tensor, draw: Tensor) -> Tensor:
            allowed = allow_classes(logits, self.engine.mask, t)
            return label_losses(self.fisher, self.fisher_weight, allowed, y, draw)

        if self.fisher != "exact":
            return per_sample_power_sum(self.module, x, losses, (y, t, draw), 2)
        every = [torch.full_like(y, c) for c in range(self.benchmark.num_classes)]
        terms = [per_sample_power_sum(self.module, x, losses, (c, t, draw), 2) for c in every]
        return {n: torch.stack([term[n] for term in terms]).sum(0) for n in terms[0]}

    def _squared_batch_gradient(self, batch: Batch, draw: Tensor) -> Tensors:
        x, y, t = batch
        loss = cross_entropy(allow_classes(self.module(x), self.engine.mask, t), y)
        gradients = torch.autograd.grad(loss, list(self.params.values()))
        return {n: g**2 for n, g in zip(self.params, gradients, strict=True)}

    def consolidate(self, importance: Tensors) -> EWCState:
        """Merge the task's penalty with the past penalty, anchored at the parameters."""
        offset, total = self.merge(importance)
        running = self.state.running
        return self.initial_state()._replace(offset=offset, importance=total, running=running)

    @torch.no_grad()
    def merge(self, importance: Tensors) -> tuple[Tensors, Tensors]:
        """Return the offset and importance of all past tasks; of the latest if `fisher_running`."""
        if self.fisher_running:
            return {}, importance
        state = self.state
        past = state.anchor, state.offset, state.importance
        return completed_square(*past, self.params, importance)

    @torch.no_grad()
    def on_after_backward(self, step: Step) -> None:
        """Update the running Fisher with the task loss's gradient, then add the penalty's."""
        if self.fisher_running:
            step.state = running_state(step.state, step.gradients, self.fisher_running_every)
        super().on_after_backward(step)

    def on_after_task(self) -> None:
        """Update the running Fisher if the task was too short for it, then add the penalty."""
        if self.fisher_running and int(self.state.count) < self.fisher_running_every:
            self.state = updated(self.state, int(self.state.count))
        super().on_after_task()


@dataclass(kw_only=True, eq=False)
class OnlineEWC(OnlineEWCOptions, EWC):
    """Online EWC: one anchor, and importance that fades (Schwarz et al. 2018)."""

    def calculate_parameter_importance(self) -> Tensors:
        """Return the Fisher information, normalised by `fisher_normalize`."""
        return normalized(super().calculate_parameter_importance(), self.fisher_normalize)

    def merge(self, importance: Tensors) -> tuple[Tensors, Tensors]:
        """Return no offset, and gamma F + F_t."""
        faded = {n: self.gamma * f + importance[n] for n, f in self.state.importance.items()}
        return {}, faded

"""EWC on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from seqrun.algorithms.base import Batch, Step
from seqrun.algorithms.ewc import EWCOptions, EWCState, OnlineEWCOptions
from seqrun.algorithms.ewc.fisher import fisher_rows, label_draws
from seqrun.algorithms.ewc.fisher.jax import (
    label_losses,
    normalized,
    running_state,
    unit_scaled,
    updated,
)
from seqrun.algorithms.regularization.jax import RegularizationAlgorithm
from seqrun.formulas.jax import allow_classes, completed_square, cross_entropy
from seqrun.formulas.per_sample.jax import per_sample_power_sum

Arrays = dict[str, Array]
Weights = tuple[Arrays, Arrays]


@dataclass(kw_only=True, eq=False)
class EWC(EWCOptions, RegularizationAlgorithm):
    """Elastic Weight Consolidation (Kirkpatrick et al. 2017)."""

    def initial_state(self) -> EWCState:
        anchor, importance = super().initial_state()
        running = importance if self.fisher_running else {}
        count = jnp.zeros((), jnp.int32) if self.fisher_running else None
        offset = jax.tree.map(jnp.zeros_like, anchor) if self.has_offset else {}
        return EWCState(anchor, importance, running, running, count, offset)

    def calculate_parameter_importance(self) -> Arrays:
        """Return the Fisher information of the task's training data."""
        if self.fisher_running:
            return unit_scaled(self.state.running)
        rows = fisher_rows(self, self.num_current)
        draws = label_draws(self, len(rows))
        batched = self.fisher == "batched"
        size = self.rows_per_batch if batched else self.engine.per_sample_rows
        classes = range(self.benchmark.num_classes) if self.fisher == "exact" else (0,)
        total = jax.tree.map(jnp.zeros_like, self.params)
        constants = (self.params, self.stats), self.engine.dataset, self.engine.mask
        cuts = np.arange(size, len(rows), size)
        for row, draw in zip(np.split(rows, cuts), np.split(draws, cuts), strict=True):
            for c in map(np.int32, classes):
                args = (total, *constants, row, draw, c)
                total = self.engine.compiled("fisher", self._add_terms, args)(*args)
        count = len(cuts) + 1 if batched else len(rows)
        return jax.tree.map(lambda f: f / count, total)

    def _add_terms(
        self, total: Arrays, weights: Weights, data: Batch, mask: Any, *part: Array
    ) -> Arrays:
        row, draw, label = part
        x, y, t = self.inputs(data.x[row]), data.y[row], data.t[row]
        if self.fisher == "batched":
            terms = self._squared_batch_gradient(weights, Batch(x, y, t), mask)
            return jax.tree.map(jnp.add, total, terms)

        def losses(logits: Array, y: Array, t: Array, draw: Array) -> Array:
            allowed = allow_classes(logits, mask, t)
            y = jnp.full_like(y, label) if self.fisher == "exact" else y
            return label_losses(self.fisher, self.fisher_weight, allowed, y, draw)

        terms = per_sample_power_sum(self.module, *weights, x, losses, (y, t, draw), 2)
        return jax.tree.map(jnp.add, total, terms)

    def _squared_batch_gradient(self, weights: Weights, batch: Batch, mask: Any) -> Arrays:
        params, stats = weights

        def mean_loss(values: Arrays) -> Array:
            logits = allow_classes(self.predict(values, stats, batch.x), mask, batch.t)
            return cross_entropy(logits, batch.y)

        return jax.tree.map(jnp.square, jax.grad(mean_loss)(params))

    def consolidate(self, importance: Arrays) -> EWCState:
        """Merge the task's penalty with the past penalty, anchored at the parameters."""
        offset, total = self.merge(importance)
        running = self.state.running
        return self.initial_state()._replace(offset=offset, importance=total, running=running)

    def merge(self, importance: Arrays) -> tuple[Arrays, Arrays]:
        """Return the offset and importance of all past tasks; of the latest if `fisher_running`."""
        if self.fisher_running:
            return {}, importance
        past = self.state.anchor, self.state.offset, self.state.importance
        args = (*past, self.params, importance)
        return self.engine.compiled("merge", completed_square, args)(*args)

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

    def calculate_parameter_importance(self) -> Arrays:
        """Return the Fisher information, normalised by `fisher_normalize`."""
        return normalized(super().calculate_parameter_importance(), self.fisher_normalize)

    def merge(self, importance: Arrays) -> tuple[Arrays, Arrays]:
        """Return no offset, and gamma F + F_t."""
        args = (self.state.importance, importance, jnp.float32(self.gamma))
        return {}, self.engine.compiled("merge", _faded_sum, args)(*args)


def _faded_sum(past: Arrays, added: Arrays, gamma: Array) -> Arrays:
    return jax.tree.map(lambda f, extra: gamma * f + extra, past, added)

"""EWC on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from seqrun.algorithms.base import Batch, Step
from seqrun.algorithms.ewc import (
    RUNNING_DECAY,
    RUNNING_EVERY,
    EWCOptions,
    EWCState,
    OnlineEWCOptions,
)
from seqrun.algorithms.ewc.samples import fisher_rows, label_draws
from seqrun.algorithms.regularization.jax import RegularizationAlgorithm
from seqrun.formulas.jax import allow_classes, completed_square, cross_entropy
from seqrun.formulas.per_sample.jax import per_sample_power_sum

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class EWC(EWCOptions, RegularizationAlgorithm):
    """Elastic Weight Consolidation (Kirkpatrick et al. 2017)."""

    def initial_state(self) -> EWCState:
        """Return zero importance, anchored at the initial weights."""
        anchor, importance = super().initial_state()
        running = importance if self.fisher_running else {}
        count = jnp.zeros((), jnp.int32) if self.fisher_running else None
        return EWCState(anchor, importance, running, running, count)

    def calculate_parameter_importance(self) -> Arrays:
        """Return the Fisher information of the task's training data."""
        if self.fisher_running:
            values = jnp.concatenate([f.ravel() for f in self.state.running.values()])
            low, high = values.min(), values.max()
            span = jnp.maximum(high - low, jnp.finfo(values.dtype).tiny)
            return {n: (f - low) / span for n, f in self.state.running.items()}
        rows = fisher_rows(self, self.num_current)
        draws = label_draws(self, len(rows))
        batched = self.fisher == "batched"
        size = self.rows_per_batch if batched else self.engine.per_sample_rows
        classes = range(self.benchmark.num_classes) if self.fisher == "exact" else (0,)
        total = jax.tree.map(jnp.zeros_like, self.params)
        known = self.params, self.stats, self.engine.dataset, self.engine.mask
        cuts = np.arange(size, len(rows), size)
        for row, draw in zip(np.split(rows, cuts), np.split(draws, cuts), strict=True):
            for c in map(np.int32, classes):
                args = (total, *known, row, draw, c)
                total = self.engine.compiled("fisher", self._add_terms, args)(*args)
        parts = len(cuts) + 1 if batched else len(rows)
        return jax.tree.map(lambda f: f / parts, total)

    def _add_terms(
        self,
        total: Arrays,
        params: Arrays,
        stats: Arrays,
        dataset: Batch,
        mask: Array | None,
        row: Array,
        draw: Array,
        label: Array,
    ) -> Arrays:
        x, y, t = self.inputs(dataset.x[row]), dataset.y[row], dataset.t[row]
        if self.fisher == "batched":

            def mean_loss(values: Arrays) -> Array:
                return cross_entropy(allow_classes(self.predict(values, stats, x), mask, t), y)

            terms = jax.tree.map(jnp.square, jax.grad(mean_loss)(params))
            return jax.tree.map(jnp.add, total, terms)

        def losses(logits: Array, y: Array, t: Array, draw: Array) -> Array:
            allowed = allow_classes(logits, mask, t)
            p = jax.nn.softmax(jax.lax.stop_gradient(allowed))
            if self.fisher == "exact":
                y = jnp.full_like(y, label)
            elif self.fisher == "pred":
                y = p.argmax(1)
            elif self.fisher == "sample":
                y = jnp.minimum((p.cumsum(1) < draw[:, None]).sum(1), p.shape[1] - 1)
            losses = optax.softmax_cross_entropy_with_integer_labels(allowed, y)
            if self.fisher == "exact" or self.fisher_weight == "p":
                # Squared, it is the weight p.
                losses *= jnp.sqrt(jnp.take_along_axis(p, y[:, None], 1)[:, 0])
            return losses

        terms = per_sample_power_sum(self.module, params, stats, x, losses, (y, t, draw), 2)
        return jax.tree.map(jnp.add, total, terms)

    def consolidate(self, importance: Arrays) -> EWCState:
        """Merge the task's penalty with the past ones', and start a new running Fisher."""
        anchor, total = self.merge(importance)
        return self.initial_state()._replace(anchor=anchor, importance=total)

    def merge(self, importance: Arrays) -> tuple[Arrays, Arrays]:
        """Return anchor and importance of all past tasks; the running Fisher's of the latest."""
        if self.fisher_running:
            return self.params, importance
        args = (self.state.anchor, self.state.importance, self.params, importance)
        return self.engine.compiled("merge", completed_square, args)(*args)

    def on_after_backward(self, step: Step) -> None:
        """Follow the running Fisher, from the task loss's gradient, then add the penalty's."""
        if self.fisher_running:
            state = step.state
            squares = jax.tree.map(lambda s, g: s + g**2, state.squares, step.gradients)
            count = state.count + 1
            due = count % RUNNING_EVERY == 0
            rate = (1 - RUNNING_DECAY) / RUNNING_EVERY
            running = jax.tree.map(
                lambda f, s: jnp.where(due, RUNNING_DECAY * f + rate * s, f), state.running, squares
            )
            squares = jax.tree.map(lambda s: jnp.where(due, 0.0, s), squares)
            step.state = state._replace(squares=squares, running=running, count=count)
        super().on_after_backward(step)


@dataclass(kw_only=True, eq=False)
class OnlineEWC(OnlineEWCOptions, EWC):
    """Online EWC: one anchor, and importance that fades (Schwarz et al. 2018)."""

    def merge(self, importance: Arrays) -> tuple[Arrays, Arrays]:
        """Return the parameters as the anchor, and gamma F + F_t."""
        args = (self.state.importance, importance, jnp.float32(self.gamma))
        return self.params, self.engine.compiled("merge", _faded_sum, args)(*args)


def _faded_sum(past: Arrays, added: Arrays, gamma: Array) -> Arrays:
    return jax.tree.map(lambda f, extra: gamma * f + extra, past, added)

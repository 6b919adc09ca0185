"""MAS on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from seqrun.algorithms.base import Batch
from seqrun.algorithms.mas import MASOptions
from seqrun.algorithms.regularization import PenaltyState
from seqrun.algorithms.regularization.jax import RegularizationAlgorithm
from seqrun.formulas.per_sample.jax import per_sample_power_sum

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class MAS(MASOptions, RegularizationAlgorithm):
    """Memory Aware Synapses (Aljundi et al. 2018)."""

    def calculate_parameter_importance(self) -> Arrays:
        """Return the sensitivity of the outputs on the task's training inputs."""
        size = self.importance_batch_size or self.engine.per_sample_rows
        rows = np.arange(self.num_current, dtype=np.int32)
        total = jax.tree.map(jnp.zeros_like, self.params)
        for row in np.split(rows, range(size, len(rows), size)):
            args = (total, self.params, self.stats, self.engine.dataset, self.engine.mask, row)
            total = self.engine.compiled("sensitivity", self._add_sensitivity, args)(*args)
        return jax.tree.map(lambda omega: omega / len(rows), total)

    def _add_sensitivity(
        self,
        total: Arrays,
        params: Arrays,
        stats: Arrays,
        dataset: Batch,
        mask: Array | None,
        row: Array,
    ) -> Arrays:
        x, t = self.inputs(dataset.x[row]), dataset.t[row]

        def squared_norms(logits: Array, t: Array) -> Array:
            """Return the (B,) squared L2 norms of the outputs that the mask allows."""
            outputs = logits if mask is None else jnp.where(mask[t], logits, 0.0)
            return (outputs**2).sum(1)

        def batch_sum(values: Arrays) -> Array:
            return squared_norms(self.predict(values, stats, x), t).sum()

        if self.importance_batch_size is None:
            terms = per_sample_power_sum(self.module, params, stats, x, squared_norms, (t,), 1)
        else:
            terms = jax.tree.map(jnp.abs, jax.grad(batch_sum)(params))
        return jax.tree.map(jnp.add, total, terms)

    def consolidate(self, importance: Arrays) -> PenaltyState:
        """Combine the task's importance with the past importance and move the anchor."""
        args = (self.state.importance, importance, *map(jnp.float32, self.weights))
        total = self.engine.compiled("consolidate", _weighted_sum, args)(*args)
        return self.state._replace(anchor=self.params, importance=total)


def _weighted_sum(past: Arrays, added: Arrays, a: Array, b: Array) -> Arrays:
    return jax.tree.map(lambda omega, extra: a * omega + b * extra, past, added)

"""DER and DER++ on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.training.step import Step
from seqrun.algorithms.der import DEROptions, DERPPOptions, DERState
from seqrun.formulas.jax import allow_classes, cross_entropy

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class DER(DEROptions, JaxBaseAlgorithm):
    """Dark Experience Replay (Buzzega et al. 2020)."""

    def initial_state(self) -> DERState:
        """Return empty slots."""
        return DERState(jnp.zeros((self.memory_size, self.benchmark.num_classes)))

    def training_loss(self, params: Arrays, step: Step) -> tuple[Array, tuple[Array, Arrays]]:
        """Return the batch's cross-entropy, its logits of all classes, and statistics."""
        logits, stats = self.forward(params, step.stats, step.batch.x, step.key)
        allowed = allow_classes(logits, step.mask, step.batch.t)
        return cross_entropy(allowed, step.batch.y), (logits, stats)

    def replay_loss(self, params: Arrays, step: Step) -> tuple[Array, Arrays]:
        """Return what memory adds to the loss, and statistics."""
        key = jax.random.fold_in(step.key, 1)
        logits, stats = self.forward(params, step.stats, step.reads["replay"].x, key)
        stored = step.state.logits[step.arrays["replay_slot"]]
        return step.hyper["alpha"] * jnp.square(logits - stored).mean(), stats

    def on_after_backward(self, algorithm: Any, step: Step) -> None:
        """Add the gradient of memory's loss, then store the batch's logits."""
        if len(step.reads["replay"].y):
            added, step.stats = jax.grad(self.replay_loss, has_aux=True)(step.params, step)
            step.gradients = jax.tree.map(jnp.add, step.gradients, added)
        slots = step.arrays["write_slot"]  # memory_size, beyond the last row, is dropped
        step.state = DERState(step.state.logits.at[slots].set(step.logits, mode="drop"))
        step.logits = allow_classes(step.logits, step.mask, step.batch.t)


@dataclass(kw_only=True, eq=False)
class DERPP(DERPPOptions, DER):
    """Dark Experience Replay ++ (Buzzega et al. 2020)."""

    def replay_loss(self, params: Arrays, step: Step) -> tuple[Array, Arrays]:
        """Return what memory adds to the loss, and statistics."""
        x, y, t = step.reads["replay_labels"]
        distance, stats = super().replay_loss(params, step)
        logits, stats = self.forward(params, stats, x, jax.random.fold_in(step.key, 2))
        logits = allow_classes(logits, step.mask, t)
        return distance + step.hyper["beta"] * cross_entropy(logits, y), stats

"""ER on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.base.step import Step
from seqrun.algorithms.er import EROptions
from seqrun.formulas.jax import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class ER(EROptions, JaxBaseAlgorithm):
    """Experience Replay (Chaudhry et al. 2019)."""

    def training_loss(
        self, params: dict[str, Array], step: Step
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """Return the cross-entropy over batch and memory, the batch's logits and statistics."""
        pairs = zip(step.batch, step.reads["replay"], strict=True)
        x, y, t = (jnp.concatenate(pair) for pair in pairs)
        logits, stats = self.forward(params, step.stats, x, step.key)
        logits = allow_classes(logits, step.mask, t)
        current = len(step.batch.y)
        if "memory_weight" in step.hyper and len(y) > current:
            weight = step.hyper["memory_weight"]
            on_batch = cross_entropy(logits[:current], y[:current])
            on_memory = cross_entropy(logits[current:], y[current:])
            return (1 - weight) * on_batch + weight * on_memory, (logits[:current], stats)
        return cross_entropy(logits, y), (logits[:current], stats)

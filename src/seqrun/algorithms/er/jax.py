"""ER on JAX."""

from __future__ import annotations

from dataclasses import dataclass

from jax import Array

from seqrun.training.step import Step
from seqrun.algorithms.er import EROptions
from seqrun.algorithms.replay.jax import ReplayAlgorithm, together
from seqrun.formulas.jax import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class ER(EROptions, ReplayAlgorithm):
    """Experience Replay (Chaudhry et al. 2019)."""

    def training_loss(
        self, params: dict[str, Array], step: Step
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """Return the cross-entropy over batch and memory, weighted if asked to, and logits."""
        current = len(step.batch.y)
        if "memory_weight" not in step.hyper or len(step.reads["replay"].y) == 0:
            return super().training_loss(params, step)
        x, y, t = together(step)
        logits, stats = self.forward(params, step.stats, x, step.key)
        logits = allow_classes(logits, step.mask, t)
        weight = step.hyper["memory_weight"]
        on_batch = cross_entropy(logits[:current], y[:current])
        on_memory = cross_entropy(logits[current:], y[current:])
        return (1 - weight) * on_batch + weight * on_memory, (logits[:current], stats)

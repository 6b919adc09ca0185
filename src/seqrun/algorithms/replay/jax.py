"""ReplayAlgorithm for JAX: a new replay method states its memory alone."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.training.step import Batch, Step
from seqrun.algorithms.replay import ReplayOptions
from seqrun.formulas.jax import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class ReplayAlgorithm(ReplayOptions, JaxBaseAlgorithm):
    """Take each step on the batch and a batch of memory; a child implements `make_memory`."""

    def training_loss(
        self, params: dict[str, Array], step: Step
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """Return the mean cross-entropy over both, the batch's logits and the statistics."""
        x, y, t = together(step)
        logits, stats = self.forward(params, step.stats, x, step.key)
        logits = allow_classes(logits, step.mask, t)
        return cross_entropy(logits, y), (logits[: len(step.batch.y)], stats)


def together(step: Step) -> Batch:
    """Return the batch and what is replayed with it, one after the other."""
    pairs = zip(step.batch, step.reads["replay"], strict=True)
    return Batch(*(jnp.concatenate(pair) for pair in pairs))

"""A-GEM on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax import Array

from seqrun.algorithms.agem import AGEMOptions
from seqrun.algorithms.base import Step
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.formulas.jax import allow_classes, cross_entropy
from seqrun.formulas.projection.jax import Loss, projected, projected_by_loss

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class AGEM(AGEMOptions, JaxBaseAlgorithm):
    """Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

    def on_before_backward(self, step: Step) -> None:
        """Compute g_ref before g, as algorithm 2 does, if its pass updates the statistics."""
        if len(step.batches["replay"].y) and self.updates_statistics:
            gradient = jax.grad(lambda params: self.memory_pass(step, params), has_aux=True)
            step.cache["reference"], step.stats = gradient(step.params)

    def on_after_backward(self, step: Step) -> None:
        """Project the gradient if it would increase the loss on memory."""
        if "reference" in step.cache:
            step.gradients = projected(step.gradients, step.cache["reference"])
        elif len(step.batches["replay"].y):
            loss, own = self.memory_loss(step), self.total_loss(step)
            step.gradients = projected_by_loss(step.gradients, step.params, loss, own)

    def memory_loss(self, step: Step) -> Loss:
        """Return the mean cross-entropy on the memory batch as a function of the parameters."""
        return lambda params: self.memory_pass(step, params)[0]

    def memory_pass(self, step: Step, params: Arrays) -> tuple[Array, Arrays]:
        """Return the mean cross-entropy on the memory batch, and the updated statistics."""
        x, y, t = step.batches["replay"]
        logits, stats = self.forward_with(params, step.stats, x, jax.random.fold_in(step.key, 1))
        return cross_entropy(allow_classes(logits, step.mask, t), y), stats

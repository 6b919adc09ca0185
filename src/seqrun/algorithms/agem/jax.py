"""A-GEM on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax import Array

from seqrun.algorithms.agem import AGEMOptions
from seqrun.algorithms.base import Step
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.formulas.jax import allow_classes, cross_entropy, projected


@dataclass(kw_only=True, eq=False)
class AGEM(AGEMOptions, JaxBaseAlgorithm):
    """Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

    def on_after_backward(self, step: Step) -> None:
        """Project the gradient where it would raise the loss of memory."""
        if len(step.batches["replay"].y):
            step.gradients = projected(step.gradients, self.reference_gradient(step))

    def reference_gradient(self, step: Step) -> dict[str, Array]:
        """Return g_ref, of the mean cross-entropy on the memory batch."""
        x, y, t = step.batches["replay"]
        key = jax.random.fold_in(step.key, 1)

        def loss(params: dict[str, Array]) -> Array:
            logits, _ = self.forward_with(params, step.stats, x, key)
            return cross_entropy(allow_classes(logits, step.mask, t), y)

        return jax.grad(loss)(step.params)

"""A-GEM on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.agem import AGEMOptions
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.base.step import Step
from seqrun.formulas.jax import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class AGEM(AGEMOptions, JaxBaseAlgorithm):
    """Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

    def on_after_backward(self, algorithm: Any, step: Step) -> None:
        """Project the gradient where it would raise the loss of memory."""
        x, y, t = step.reads["replay"]
        if not len(y):
            return

        def loss(params: dict[str, Array]) -> Array:
            key = jax.random.fold_in(step.key, 1)
            logits, _ = self.forward(params, step.stats, x, key)  # statistics: without a trace
            return cross_entropy(allow_classes(logits, step.mask, t), y)

        step.gradients = projected(step.gradients, jax.grad(loss)(step.params))


def projected(gradients: dict[str, Array], reference: dict[str, Array]) -> dict[str, Array]:
    """Return g - (g.r / r.r) r if g.r < 0, else g to the bit; also g where r = 0."""
    pairs = [(g, reference[name]) for name, g in gradients.items()]
    product = jnp.stack([(g * r).sum() for g, r in pairs]).sum()
    square = jnp.stack([jnp.square(r).sum() for _, r in pairs]).sum()
    excess = jnp.minimum(product, 0) / jnp.maximum(square, jnp.finfo(square.dtype).tiny)
    return {name: g - excess * reference[name] for name, g in gradients.items()}

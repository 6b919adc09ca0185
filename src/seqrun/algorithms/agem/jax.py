"""A-GEM on JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from seqrun.algorithms.agem import AGEMOptions
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.training.step import Step
from seqrun.formulas.jax import allow_classes, cross_entropy
from seqrun.formulas.layers.jax import LayerTrace, dense_gradient, dense_product, through_layers


@dataclass(kw_only=True, eq=False)
class AGEM(AGEMOptions, JaxBaseAlgorithm):
    """Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

    def on_after_backward(self, algorithm: Any, step: Step) -> None:
        """Project the gradient where it would raise the loss of memory.

        Where the network has dense layers alone, g.g_ref takes no g_ref: it is made where it is
        needed, on a CPU. g is then of the layers too: the compiler leaves out that of `backward`.
        """
        memory = step.reads["replay"]
        if not len(memory.y):
            return
        params, noise = step.params, jax.random.fold_in(step.key, 1)

        def loss(params: dict[str, Array]) -> Array:
            logits, _ = self.forward(params, step.stats, memory.x, noise)  # a pass without a trace
            return cross_entropy(allow_classes(logits, step.mask, memory.t), memory.y)

        reference = self._layers(step, loss)
        own = reference and self._layers(step, lambda params: self.training_loss(params, step)[0])
        if own is None:
            step.gradients = projected(step.gradients, jax.grad(loss)(params))
        else:
            gradient, product = dense_gradient(own), dense_product(own, reference)
            step.gradients = jax.lax.cond(
                product < 0,
                lambda: projected(gradient, dense_gradient(reference), product),
                lambda: gradient,
            )

    def _layers(self, step: Step, loss: Callable[[dict[str, Array]], Array]) -> LayerTrace | None:
        """Return what a loss makes of the layers, if all are dense.

        A child may have another gradient than that of its loss, and so may a network with
        statistics, which are those after the step's pass by now.
        """
        if self.device_kind != "cpu" or type(self) is not AGEM or step.stats:
            return None
        return through_layers((nn.Dense,), step.params, loss)


def projected(
    gradients: dict[str, Array], reference: dict[str, Array], product: Array | None = None
) -> dict[str, Array]:
    """Return g - (g.r / r.r) r if g.r < 0, else g to the bit; also g where r = 0.

    Args:
        gradients, reference: g and r, by canonical name.
        product: g.r, if it is known.
    """
    product = _inner(gradients, reference) if product is None else product
    square = _inner(reference, reference)
    excess = jnp.minimum(product, 0) / jnp.maximum(square, jnp.finfo(square.dtype).tiny)
    return {name: g - excess * reference[name] for name, g in gradients.items()}


def _inner(one: dict[str, Array], other: dict[str, Array]) -> Array:
    return jnp.stack([(v * other[name]).sum() for name, v in one.items()]).sum()

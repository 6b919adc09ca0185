"""Projection of a gradient on JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from seqrun.formulas.layers.jax import dense_gradient, dense_product, through_layers

Arrays = dict[str, Array]
Loss = Callable[[Arrays], Array]


def projected_by_loss(
    gradients: Arrays, params: Arrays, loss: Loss, own: Loss | None = None
) -> Arrays:
    """Return g projected to where it does not raise `loss`.

    Where the network has dense layers alone, g.r takes no r: r is then made only where it is
    needed. g is made of the layers too, and the compiler leaves out the one that was given.

    Args:
        gradients: g, by canonical name.
        params: what both gradients are by.
        loss: scalar function of the parameters, whose gradient is r.
        own: the loss whose gradient g is; None = decide by r itself, which a GPU does faster.
    """
    reference = None if own is None else through_layers((nn.Dense,), params, loss)
    layers = None if own is None or reference is None else through_layers((nn.Dense,), params, own)
    if layers is None or reference is None:
        return projected(gradients, jax.grad(loss)(params))
    gradient, product = dense_gradient(layers), dense_product(layers, reference)
    return jax.lax.cond(
        product < 0,
        lambda: projected(gradient, dense_gradient(reference), product),
        lambda: gradient,
    )


def projected(gradients: Arrays, reference: Arrays, product: Array | None = None) -> Arrays:
    """Return g - (g.r / r.r) r if g.r < 0, else g to the bit; also g where r = 0.

    Args:
        gradients, reference: g and r, by canonical name.
        product: g.r, if it is known.
    """
    product = _inner(gradients, reference) if product is None else product
    square = _inner(reference, reference)
    excess = jnp.minimum(product, 0) / jnp.maximum(square, jnp.finfo(square.dtype).tiny)
    return {name: g - excess * reference[name] for name, g in gradients.items()}


def _inner(one: Arrays, other: Arrays) -> Array:
    return jnp.stack([(v * other[name]).sum() for name, v in one.items()]).sum()

"""Projection of a gradient on JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from seqrun.formulas.layers.jax import dense_gradient, dense_product, trace_layers

Arrays = dict[str, Array]
Loss = Callable[[Arrays], Array]


def projected_by_loss(
    gradients: Arrays, params: Arrays, loss: Loss, own: Loss | None = None
) -> Arrays:
    """Return g, projected if it would increase `loss`.

    In a network of dense layers only, g.r is computed without r, and r only if g.r < 0. Then g is
    computed from the layers too, and the compiler removes the computation of `gradients`.

    Args:
        gradients: g, by canonical name.
        params: the parameters that both gradients are taken with respect to.
        loss: scalar function of the parameters; r is its gradient.
        own: scalar function whose gradient is g; None = always compute r.
    """
    reference = None if own is None else trace_layers((nn.Dense,), params, loss)
    current = None if own is None or reference is None else trace_layers((nn.Dense,), params, own)
    if current is None or reference is None:
        return projected(gradients, jax.grad(loss)(params))
    gradient, product = dense_gradient(current), dense_product(current, reference)
    return jax.lax.cond(
        product < 0,
        lambda: projected(gradient, dense_gradient(reference), product),
        lambda: gradient,
    )


def projected(gradients: Arrays, reference: Arrays, product: Array | None = None) -> Arrays:
    """Return g - (g.r / r.r) r if g.r < 0; if g.r >= 0 or r = 0, return g to the bit.

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

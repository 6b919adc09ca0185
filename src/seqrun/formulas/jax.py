"""Pure functions for JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

Arrays = dict[str, Array]


def cross_entropy(logits: Array, y: Array) -> Array:
    """Return the mean cross-entropy of (B, C) logits and (B,) labels."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.custom_jvp
def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """Return the cross-entropy of sigmoid(logits) and constant targets in [0, 1], each by itself.

    The derivative is sigmoid(logits) - targets, as on PyTorch: exactly 0 where the targets are the
    sigmoids. The sum that autodiff makes leaves a rounding error, which Adam turns into full steps.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets)


@binary_cross_entropy.defjvp
def _binary_cross_entropy_jvp(
    values: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    logits, targets = values
    slope = jax.nn.sigmoid(logits) - targets
    return binary_cross_entropy(logits, targets), slope * tangents[0]


def allow_classes(logits: Array, mask: Array | None, t: Array) -> Array:
    """Set logits to the lowest number where `mask` (T, C) excludes the class from the task `t`."""
    if mask is None:
        return logits
    return jnp.where(mask[t], logits, jnp.finfo(logits.dtype).min)


def clip_by_global_norm(gradients: Arrays, max_norm: Any) -> Arrays:
    """Scale all gradients by min(1, max_norm / (global norm + 1e-6))."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, gradients)


def penalty_gradient(
    params: Arrays,
    anchor: Arrays,
    importance: Arrays,
    coefficient: Any,
    offset: Arrays | None = None,
) -> Arrays:
    """Return d/d theta of coefficient * sum_i Omega_i (theta_i - theta*_i)^2.

    theta* is the anchor, plus an `offset` if there is one.
    """
    difference = jax.tree.map(jnp.subtract, params, anchor)
    if offset:
        difference = jax.tree.map(jnp.subtract, difference, offset)
    return jax.tree.map(lambda d, omega: 2.0 * coefficient * (omega * d), difference, importance)


def penalty(params: Arrays, anchor: Arrays, importance: Arrays, coefficient: Any) -> Array:
    """Return coefficient * sum_i Omega_i (theta_i - theta*_i)^2."""
    terms = [(importance[n] * (params[n] - anchor[n]) ** 2).sum() for n in params]
    return coefficient * jnp.stack(terms).sum()


def completed_square(
    anchor: Arrays, offset: Arrays, importance: Arrays, params: Arrays, added: Arrays
) -> tuple[Arrays, Arrays]:
    """Add Omega (theta - a - o)^2 and Omega' (theta - theta')^2 into one square around theta' + o'.

    Equal up to a constant. The anchor is kept in two parts, since their sum in float32 cannot tell
    theta' + o' from theta' where o' is small, and Adam makes full steps of what is lost.

    Args:
        anchor, offset: a and o.
        importance: Omega.
        params, added: theta' and Omega'.

    Returns:
        The offset o' = Omega / (Omega + Omega') (a - theta' + o), 0 where Omega is 0, and the
        importance Omega + Omega'.
    """
    total = jax.tree.map(jnp.add, importance, added)
    merged = {}
    for n, p in params.items():
        share = importance[n] / jnp.where(total[n] > 0, total[n], 1.0)
        merged[n] = share * (anchor[n] - p + offset[n])
    return merged, total

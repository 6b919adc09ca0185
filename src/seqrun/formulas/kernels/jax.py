"""Kernels for JAX."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.formulas.kernels import POLY_DEGREE, RBF_RATE


def fourier_features(x: Array, bases: Array, phase: Array) -> Array:
    """Return sqrt(2 / D) cos(omega x + b) of (N, d) rows, (D, d) bases and (D,) phases: (N, D).

    Rahimi and Recht 2007, algorithm 1.
    """
    return math.sqrt(2.0 / len(phase)) * jnp.cos(x @ bases.T + phase)


def scaled_features(scaling: str, features: Array, low: Array, high: Array) -> Array:
    """Return (N, d) features, scaled.

    Args:
        scaling: one of SCALINGS.
        features: (N, d).
        low, high: scalars, the range of "min_max".
    """
    if scaling == "l2":
        squares = (features**2).sum(1, keepdims=True)
        return features * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
    if scaling == "authors":
        low, high = features.min(), features.max()
    return (features - low) / jnp.maximum(high - low, jnp.finfo(low.dtype).eps)


def gram(kernel_type: str, a: Array, b: Array) -> Array:
    """Return the (N, M) kernel of (N, d) and (M, d) rows; see KERNELS."""
    products = a @ b.T
    if kernel_type == "rbf":
        distances = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * products
        return jnp.exp(-RBF_RATE * jnp.maximum(distances, 0.0))
    if kernel_type == "poly":
        return (products / a.shape[1] + 1.0) ** POLY_DEGREE
    return products


def ridge_weights(kernel: Array, ridge: Array, targets: Array) -> Array:
    """Return (K + ridge I)^-1 Y by Cholesky; NaN if the matrix is not positive definite.

    Args:
        kernel: (N, N) symmetric.
        ridge: scalar > 0.
        targets: (N, C).
    """
    identity = jnp.eye(len(kernel), dtype=kernel.dtype)
    factor = jax.scipy.linalg.cho_factor(kernel + ridge * identity, lower=True)
    return jax.scipy.linalg.cho_solve(factor, targets)


def gaussian_divergence(
    mean: Array, log_variance: Array, prior_mean: Array, prior_log_variance: Array
) -> Array:
    """Return KL(q || p) of two Gaussians with diagonal covariance."""
    distance = (jnp.exp(log_variance) + (mean - prior_mean) ** 2) / jnp.exp(prior_log_variance)
    return 0.5 * (prior_log_variance - log_variance + distance - 1.0).sum()

"""Kernels for PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqrun.formulas.kernels import POLY_DEGREE, RBF_RATE


def fourier_features(x: Tensor, bases: Tensor, phase: Tensor) -> Tensor:
    """Return sqrt(2 / D) cos(omega x + b) of (N, d) rows, (D, d) bases and (D,) phases: (N, D).

    Rahimi and Recht 2007, algorithm 1.
    """
    return math.sqrt(2.0 / len(phase)) * torch.cos(x @ bases.T + phase)


def scaled_features(scaling: str, features: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return (N, d) features, scaled.

    Args:
        scaling: one of SCALINGS.
        features: (N, d).
        low, high: scalars, the range of "min_max".
    """
    if scaling == "l2":
        return torch.nn.functional.normalize(features)
    if scaling == "authors":
        low, high = features.min(), features.max()
    return (features - low) / (high - low).clamp(min=torch.finfo(low.dtype).eps)


def gram(kernel_type: str, a: Tensor, b: Tensor) -> Tensor:
    """Return the (N, M) kernel of (N, d) and (M, d) rows; see KERNELS."""
    products = a @ b.T
    if kernel_type == "rbf":
        distances = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * products
        return torch.exp(-RBF_RATE * distances.clamp(min=0.0))
    if kernel_type == "poly":
        return (products / a.shape[1] + 1.0) ** POLY_DEGREE
    return products


def ridge_weights(kernel: Tensor, ridge: Tensor, targets: Tensor) -> Tensor:
    """Return (K + ridge I)^-1 Y by Cholesky; NaN if the matrix is not positive definite.

    Args:
        kernel: (N, N) symmetric.
        ridge: scalar > 0.
        targets: (N, C).
    """
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    factor, failed = torch.linalg.cholesky_ex(kernel + ridge * identity)
    factor = torch.where(failed > 0, torch.nan, factor)
    return torch.cholesky_solve(targets, factor)


def gaussian_divergence(
    mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor
) -> Tensor:
    """Return KL(q || p) of two Gaussians with diagonal covariance."""
    distance = (log_variance.exp() + (mean - prior_mean) ** 2) / prior_log_variance.exp()
    return 0.5 * (prior_log_variance - log_variance + distance - 1.0).sum()

"""Stable SGD on JAX."""

from __future__ import annotations

from dataclasses import dataclass

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.stable_sgd import StableSGDOptions


@dataclass(kw_only=True, eq=False)
class StableSGD(StableSGDOptions, JaxBaseAlgorithm):
    """Stable SGD: a regime of dropout and falling learning rates (Mirzadeh et al. 2020)."""

"""Stable SGD on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.stable_sgd import StableSGDOptions


@dataclass(kw_only=True, eq=False)
class StableSGD(StableSGDOptions, PyTorchBaseAlgorithm):
    """Stable SGD: a regime of dropout and falling learning rates (Mirzadeh et al. 2020)."""

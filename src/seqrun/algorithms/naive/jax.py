"""Naive on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.algorithms.base.jax import JaxBaseAlgorithm


@dataclass(kw_only=True, eq=False)
class Naive(JaxBaseAlgorithm):
    """Train on each task in turn."""

    name: ClassVar[str] = "naive"

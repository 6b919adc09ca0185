"""Independent on JAX."""

from __future__ import annotations

from dataclasses import dataclass

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.independent import IndependentOptions


@dataclass(kw_only=True, eq=False)
class Independent(IndependentOptions, JaxBaseAlgorithm):
    """Train a fresh model per task and evaluate each task with its own."""

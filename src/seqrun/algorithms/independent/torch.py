"""Independent on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.independent import IndependentOptions


@dataclass(kw_only=True, eq=False)
class Independent(IndependentOptions, PyTorchBaseAlgorithm):
    """Train a fresh model per task and evaluate each task with its own."""

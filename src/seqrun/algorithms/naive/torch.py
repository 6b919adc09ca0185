"""Naive on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm


@dataclass(kw_only=True, eq=False)
class Naive(PyTorchBaseAlgorithm):
    """Train on each task in turn."""

    name: ClassVar[str] = "naive"

"""Joint on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.joint import JointOptions


@dataclass(kw_only=True, eq=False)
class Joint(JointOptions, PyTorchBaseAlgorithm):
    """Train on the data of the tasks so far, or of all tasks: the upper reference."""

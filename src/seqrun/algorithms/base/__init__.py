"""BaseAlgorithm: the flow of training over a stream of tasks, and its hooks.

The engines of the two frameworks are in torch.py and jax.py.
"""

from seqrun.algorithms.base.flow import BaseAlgorithm
from seqrun.algorithms.base.options import TrainingOptions
from seqrun.algorithms.base.step import Batch, Step

__all__ = ["BaseAlgorithm", "Batch", "Step", "TrainingOptions"]

"""BaseAlgorithm: the flow of training over a stream of tasks, and its hooks.

The engines of the two frameworks are in torch.py and jax.py.
"""

from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.options import TrainingOptions
from seqrun.training.step import Batch, Step

__all__ = ["BaseAlgorithm", "Batch", "Step", "TrainingOptions"]

"""BaseAlgorithm and the types of its methods; torch.py and jax.py have the backends' bases."""

from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.options import TrainingOptions
from seqrun.training.step import Batch, Losses, Step

__all__ = ["BaseAlgorithm", "Batch", "Losses", "Step", "TrainingOptions"]

"""BaseAlgorithm and what a method is written with; the two backends' bases are in torch and jax."""

from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.options import TrainingOptions
from seqrun.training.step import Batch, Losses, Step

__all__ = ["BaseAlgorithm", "Batch", "Losses", "Step", "TrainingOptions"]

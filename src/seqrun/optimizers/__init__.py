"""Optimizers: shared arguments and state; the updates are in torch.py and jax.py."""

from seqrun.optimizers.base import AdamOptions, AdamState, BaseOptimizer, SGDOptions, SGDState

__all__ = ["AdamOptions", "AdamState", "BaseOptimizer", "SGDOptions", "SGDState"]

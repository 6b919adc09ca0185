"""Optimizers: shared arguments and state; the updates are in torch.py and jax.py.

`foreign/` wraps those of torch.optim and optax that have no twin.
"""

from seqrun.optimizers.base import (
    AdagradOptions,
    AdagradState,
    AdamOptions,
    AdamState,
    AdamWOptions,
    BaseOptimizer,
    RMSpropOptions,
    RMSpropState,
    SGDOptions,
    SGDState,
)

__all__ = [
    "AdagradOptions",
    "AdagradState",
    "AdamOptions",
    "AdamState",
    "AdamWOptions",
    "BaseOptimizer",
    "RMSpropOptions",
    "RMSpropState",
    "SGDOptions",
    "SGDState",
]

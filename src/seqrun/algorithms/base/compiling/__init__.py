"""When a training step is compiled on PyTorch: a fixed rule, never a matter of timing."""

from __future__ import annotations

WORTH_STEPS = 20_000
"""Planned steps of a run from which compiling one pays: it takes about as long as these save.

Measured on 2 cores with an MLP 784-256-256-10 at batch 10: see bench/RESULTS.md.
"""
WORTH_LESS_THAN = 5e7
"""Multiply-adds of a batch's forward pass up to which it does: beyond, the time is that of the
matrix products and convolutions themselves, which compiling leaves as they are."""


def is_worth_compiling(total_steps: int, multiply_adds_per_batch: int, device_kind: str) -> bool:
    """Return whether a run of so many steps, of so much work each, is to be compiled."""
    is_small = multiply_adds_per_batch < WORTH_LESS_THAN or device_kind == "cuda"
    return total_steps >= WORTH_STEPS and is_small

"""The fixed rule for CPU threads."""

from __future__ import annotations

from seqrun.system import num_cores

WORTH_THREADS = 5e7
"""Multiply-adds of a batch's forward pass from which more than one thread pays.

A small network's operations take microseconds, less than waking another thread; beside another
busy process two threads were measured 40 times slower than one. An MLP 784-256-256-10 at batch
10 needs 2.7e6; ResNet18Thin at batch 10, about 5e8.
"""


def default_num_threads(multiply_adds_per_batch: int) -> int:
    """Return the CPU threads of one run: a function of shapes and cores, never of timing."""
    if multiply_adds_per_batch < WORTH_THREADS:
        return 1
    return num_cores()

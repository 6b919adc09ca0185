"""The fixed rule for CPU threads."""

from __future__ import annotations

WORTH_THREADS = 5e7
"""Multiply-adds of a batch's forward pass from which more than one thread is faster.

The operations of a small network take microseconds, less than it takes to wake another thread. With
another busy process on the machine, two threads were measured to be 40 times slower than one. At
batch size 10, an MLP 784-256-256-10 needs 2.7e6 multiply-adds and ResNet18Thin about 5e8.
"""
THREADS = 2
"""Threads from there on, on a machine with any number of cores: it changes the order of sums."""


def default_num_threads(multiply_adds_per_batch: int) -> int:
    """Return the number of CPU threads of one run, from shapes alone, never cores or timing."""
    return 1 if multiply_adds_per_batch < WORTH_THREADS else THREADS

"""The random choices of a memory: which slots are written to, and which samples are replayed."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class MemoryDraw(IntEnum):
    """What a generator of the stream "memory" is for: the first number of its position."""

    SELECTION = 1
    WRITES = 2
    BATCHES = 3


def reservoir_slots(offered: int, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the slots of the next samples; after n samples each is stored with probability size/n.

    Vitter 1985, algorithm R: the first `size` samples fill the slots. Each later sample, the n-th
    of the stream, draws one of n positions; the first `size` positions are the slots.

    Args:
        offered: number of earlier samples, >= 0.
        count: number of new samples.
        size: number of slots.
        rng: draws one integer per sample.

    Returns:
        (count,) int32 in 0..size; size = not stored.
    """
    before = offered + np.arange(count)
    drawn = np.minimum(rng.integers(0, before + 1), size)
    return np.where(before < size, before, drawn).astype(np.int32)


def distinct(below: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw distinct integers for each row; all sets are equally likely, the order is arbitrary.

    Floyd's algorithm (Bentley and Floyd 1987), on all rows at once.

    Args:
        below: (S,) integers: row s draws from 0..below[s] - 1.
        count: integers per row, <= every `below`.
        rng: draws `count` integers per row.

    Returns:
        (S, count) int32.
    """
    drawn = np.empty((count, len(below)), np.int32)
    for i in range(count):
        highest = below - count + i
        pick = rng.integers(0, highest + 1)
        drawn[i] = np.where((drawn[:i] == pick).any(0), highest, pick)
    return np.ascontiguousarray(drawn.T)

"""The chance of a memory: who is written where, and who is read."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class MemoryDraw(IntEnum):
    """What is drawn from the stream "memory": the first position of its generator."""

    SELECTION = 1
    WRITES = 2
    READS = 3


def reservoir_slots(offered: int, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the slot of each next sample: of n samples each is kept with probability size / n.

    Vitter 1985, algorithm R: the first `size` fill the slots; of the others, the n-th goes to one
    of n places at random, of which `size` are slots.

    Args:
        offered: samples so far, >= 0.
        count: samples now.
        size: slots of the reservoir.
        rng: one integer is drawn for each sample.

    Returns:
        (count,) int32 in 0..size; size = not kept.
    """
    before = offered + np.arange(count)
    drawn = np.minimum(rng.integers(0, before + 1), size)
    return np.where(before < size, before, drawn).astype(np.int32)


def distinct(below: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw without replacement, once per row: every set is as probable; its order means nothing.

    Floyd's algorithm (Bentley and Floyd 1987), on all rows at once.

    Args:
        below: (S,) integers: row s draws from 0..below[s] - 1.
        count: integers per row, <= every `below`.
        rng: `count` integers are drawn for each row.

    Returns:
        (S, count) int32.
    """
    drawn = np.empty((count, len(below)), np.int32)
    for i in range(count):
        highest = below - count + i
        pick = rng.integers(0, highest + 1)
        drawn[i] = np.where((drawn[:i] == pick).any(0), highest, pick)
    return np.ascontiguousarray(drawn.T)

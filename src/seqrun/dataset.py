"""Dataset: labelled samples as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Rows = slice | np.ndarray
ALL_ROWS = slice(None)


class Dataset(NamedTuple):
    """Labelled samples in memory.

    Attributes:
        x: (N, H, W, C) uint8 images.
        y: (N,) int32 labels, as used in training.
        t: (N,) int32 tasks, 0-based.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray

    @classmethod
    def of_task(cls, x: np.ndarray, y: np.ndarray, task: int) -> Dataset:
        """Return a dataset with the samples of one task (1-based)."""
        return cls(x, y, np.full(len(y), task - 1, np.int32))

    def rows(self, rows: Rows) -> Dataset:
        """Return the samples with these row indices."""
        return self if rows is ALL_ROWS else Dataset(self.x[rows], self.y[rows], self.t[rows])

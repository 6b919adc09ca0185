"""ImageSource: a known set of labelled images from which benchmarks make tasks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class RawImages(NamedTuple):
    """A whole data set: x (N, H, W, C) uint8, y (N,) int32 classes from 0."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """The facts about a data set that are known before it is loaded, and how to load it.

    Args:
        input_shape: (H, W, C).
        train_counts: number of training samples of each class.
        mean, std: of the training pixels in [0, 1], per channel; None = not known, measured if
            needed.
        checksum: identifies the data; `load` refuses data with another checksum.
        check: function of data_dir that raises ConfigError if the data are damaged, or are missing
            and cannot be downloaded; it then leaves no files behind. Its result is ignored.
        load: data_dir -> RawImages; raises ConfigError as `check` does.
        checksum_in: data_dir -> checksum, for a source whose `load` also reads data that it cannot
            verify; None = always `checksum`.
    """

    input_shape: tuple[int, int, int]
    train_counts: tuple[int, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    checksum: str
    check: Callable[[str | Path | None], object]
    load: Callable[[str | Path | None], RawImages]
    checksum_in: Callable[[str | Path | None], str] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.train_counts)


def data_root(data_dir: str | Path | None) -> Path:
    """Return the folder of data sets: `data_dir`, else $SEQRUN_DATA, else ./data."""
    return Path(data_dir or os.environ.get("SEQRUN_DATA") or "data").expanduser()

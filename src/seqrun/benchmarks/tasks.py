"""Tasks as data sets: in memory, or computed when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seqrun.plan import ALL_ROWS, Dataset, Rows


class Transform(NamedTuple):
    """Map stored uint8 images to network inputs: (x / 255 - mean) / std, float32, per channel.

    `mean` and `std` are None for inputs in [0, 1].
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class LazyTasks(Mapping[int, Dataset]):
    """Task (1-based) -> Dataset, computed on access, so that long streams fit in memory.

    Args:
        sizes: number of samples of each task.
        read: (task, rows) -> Dataset with these rows of the task; rows are a slice or indices.
    """

    def __init__(self, sizes: Sequence[int], read: Callable[[int, Rows], Dataset]) -> None:
        """Store how to read tasks; read none."""
        self._sizes = list(sizes)
        self.read = read

    def __getitem__(self, task: int) -> Dataset:
        """Compute a whole task."""
        if task not in range(1, len(self._sizes) + 1):
            raise KeyError(task)
        return self.read(task, ALL_ROWS)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the tasks."""
        return iter(range(1, len(self._sizes) + 1))

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self._sizes)

    def size(self, task: int) -> int:
        """Return the number of samples of a task without computing it."""
        return self._sizes[task - 1]


def changed_images(
    num_tasks: int, x: np.ndarray, y: np.ndarray, change: Callable[[np.ndarray, int], np.ndarray]
) -> LazyTasks:
    """Return tasks with the same samples, whose images are transformed differently in each task.

    Args:
        num_tasks: number of tasks.
        x: (N, H, W, C) uint8.
        y: (N,) int32.
        change: (images, task) -> transformed images, as many and all of the same shape.
    """
    return LazyTasks(
        [len(y)] * num_tasks,
        lambda task, rows: Dataset.of_task(change(x[rows], task), y[rows], task),
    )


def pad(images: np.ndarray, side: int) -> np.ndarray:
    """Centre images in black squares; an odd pixel goes to the bottom or the right.

    Args:
        images: (N, H, W, C) uint8.
        side: S >= H and W.

    Returns:
        (N, S, S, C) uint8.
    """
    height, width = images.shape[1:3]
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(images, ((0, 0), (top, side - height - top), (left, side - width - left), (0, 0)))


def size_of(tasks: Mapping[int, Dataset], task: int) -> int:
    """Return the number of samples of a task, without computing it if it is lazy."""
    return tasks.size(task) if isinstance(tasks, LazyTasks) else len(tasks[task].y)


def read_rows(tasks: Mapping[int, Dataset], task: int, rows: Rows) -> Dataset:
    """Return some samples of a task without computing the others."""
    return tasks.read(task, rows) if isinstance(tasks, LazyTasks) else tasks[task].rows(rows)


def concatenate(parts: Sequence[Dataset]) -> Dataset:
    """Concatenate one or more data sets."""
    return parts[0] if len(parts) == 1 else Dataset(*map(np.concatenate, zip(*parts, strict=True)))

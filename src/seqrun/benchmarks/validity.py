"""Checks of a benchmark's tasks, when they are made and when they are read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from seqrun.benchmarks.tasks import size_of
from seqrun.checks import ConfigError
from seqrun.plan import Dataset


def check_tasks(tasks: Mapping[int, Dataset], num_tasks: int, split: str) -> None:
    """Raise ConfigError unless tasks 1..num_tasks exist and none is empty."""
    wanted = list(range(1, num_tasks + 1))
    if sorted(tasks) != wanted:
        raise ConfigError(
            f"benchmark.num_tasks={num_tasks}: the {split} data must have tasks "
            f"1..{num_tasks}, have {sorted(tasks)}"
        )
    for task in wanted:
        if size_of(tasks, task) == 0:
            raise ConfigError(f"benchmark: task {task} has no {split} samples")


def checked_task(
    data: Dataset, t: int, split: str, input_shape: tuple[int, int, int], num_classes: int
) -> Dataset:
    """Return the data of task t with int32 labels, after checking them.

    Args:
        data: from the benchmark.
        t: task, 1-based.
        split: "train", "validation" or "test".
        input_shape: (H, W, C) of the images.
        num_classes: labels are in 0..num_classes - 1.

    Raises:
        ConfigError: a wrong shape, type or label; the message names it and the task.
    """
    where = f"benchmark: the {split} data of task {t}"
    x, y = np.asarray(data.x), np.asarray(data.y)
    if x.dtype != np.uint8 or x.shape[1:] != tuple(input_shape):
        raise ConfigError(
            f"{where}: images are {x.dtype} of shape {x.shape[1:]}, must be uint8 of shape "
            f"{tuple(input_shape)}"
        )
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(
            f"{where}: labels are {y.dtype} of shape {y.shape}, must be {len(x)} integers"
        )
    if y.min() < 0 or y.max() >= num_classes:
        wrong = y[(y < 0) | (y >= num_classes)][0]
        raise ConfigError(f"{where}: label {wrong} must be in 0..{num_classes - 1}")
    return Dataset.of_task(x, y.astype(np.int32, copy=False), t)

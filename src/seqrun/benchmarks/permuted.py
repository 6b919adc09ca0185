"""Permuted Digits and Permuted MNIST: every task permutes the pixels differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqrun.benchmarks.base import BaseBenchmark, TaskDraw
from seqrun.benchmarks.digits import DIGITS
from seqrun.benchmarks.mnist import MNIST
from seqrun.benchmarks.tasks import changed_images
from seqrun.checks import boolean
from seqrun.plan import Dataset


@dataclass(kw_only=True, eq=False)
class Permuted(BaseBenchmark):
    """Move pixel permutation_t[i] of every image to position i in task t.

    Goodfellow et al., An Empirical Investigation of Catastrophic Forgetting, 2013 (1312.6211);
    Kirkpatrick et al., 2017 (1612.00796). With `pad_to` images are padded first, so that the
    padding is permuted too.

    Args:
        first_task_identity: do not permute task 1.

    See BaseBenchmark for the others.
    """

    num_tasks: int = 5
    first_task_identity: bool = True

    scenarios = ("domain",)

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        boolean("benchmark.first_task_identity", self.first_task_identity)
        self._check_sizes([sum(self.image_source.train_counts)])

    def permutation(self, t: int) -> np.ndarray:
        """Return the permutation of task t (1-based), (H * W * C,), of an image's flat values."""
        values = int(np.prod(self.input_shape))
        if t == 1 and self.first_task_identity:
            return np.arange(values)
        return self.streams.generator("tasks", TaskDraw.PERMUTATION, t).permutation(values)

    def prepare_datasets(self) -> tuple[Mapping[int, Dataset], Mapping[int, Dataset]]:
        """Return tasks whose images are permuted when they are read."""

        def shuffle(images: np.ndarray, task: int) -> np.ndarray:
            whole_images = self.padded(images)
            flat = whole_images.reshape(len(images), -1)
            return flat.take(self.permutation(task), axis=1).reshape(whole_images.shape)

        raw = self.load_images()
        return (
            changed_images(self.num_tasks, raw.x_train, raw.y_train, shuffle),
            changed_images(self.num_tasks, raw.x_test, raw.y_test, shuffle),
        )


class PermutedDigits(Permuted):
    """Permuted's stream over scikit-learn's embedded digits: 1440 / 357 images of 8 x 8."""

    name = "permuted_digits"
    source = DIGITS


class PermutedMNIST(Permuted):
    """Permuted's stream over MNIST: 60000 / 10000 images of 28 x 28."""

    name = "permuted_mnist"
    source = MNIST

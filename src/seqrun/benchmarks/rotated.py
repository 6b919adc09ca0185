"""Rotated Digits and Rotated MNIST: every task turns the same images by its own angle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqrun.benchmarks.base import BaseBenchmark, Dataset
from seqrun.benchmarks.dataset import changed_images
from seqrun.benchmarks.digits import DIGITS
from seqrun.benchmarks.mnist import MNIST
from seqrun.benchmarks.rotation import INTERPOLATIONS, rotate
from seqrun.checks import ConfigError, one_of


@dataclass(kw_only=True, eq=False)
class Rotated(BaseBenchmark):
    """Turn all images counter-clockwise by (t - 1) * per_task_rotation degrees in task t.

    Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, 2017 (1706.08840);
    fixed angles as Mirzadeh et al., 2020 (2010.04495).

    Args:
        per_task_rotation: degrees, any finite number.
        angles: degrees of each task, in place of multiples of `per_task_rotation`.
        interpolation: "bilinear" or "nearest", as PIL's, to the bit.

    See BaseBenchmark for the others.
    """

    num_tasks: int = 5
    per_task_rotation: float = 36.0
    angles: Sequence[float] | None = None
    interpolation: str = "bilinear"

    scenarios = ("domain",)

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        one_of("benchmark.interpolation", self.interpolation, INTERPOLATIONS)
        _finite("benchmark.per_task_rotation", self.per_task_rotation)
        if self.angles is not None:
            if not isinstance(self.angles, Sequence) or len(self.angles) != self.num_tasks:
                raise ConfigError(
                    f"benchmark.angles={self.angles!r}: must be null or a list of "
                    f"benchmark.num_tasks={self.num_tasks} numbers"
                )
            for angle in self.angles:
                _finite("benchmark.angles", angle)
        self._check_sizes([sum(self.source.train_counts)])

    def angle(self, t: int) -> float:
        """Return the degrees that task t (1-based) is rotated by."""
        if self.angles is None:
            return float((t - 1) * self.per_task_rotation)
        return float(self.angles[t - 1])

    def prepare_datasets(self) -> tuple[Mapping[int, Dataset], Mapping[int, Dataset]]:
        """Return tasks whose images are rotated when they are read."""

        def turn(images: np.ndarray, task: int) -> np.ndarray:
            return rotate(images, self.angle(task), self.interpolation)

        raw = self.source.load(self.data_dir)
        return (
            changed_images(self.num_tasks, raw.x_train, raw.y_train, turn),
            changed_images(self.num_tasks, raw.x_test, raw.y_test, turn),
        )


def _finite(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r}: must be a finite number of degrees")


class RotatedDigits(Rotated):
    """Rotated's stream over scikit-learn's embedded digits: 1440 / 357 images of 8 x 8."""

    name = "rotated_digits"
    source = DIGITS


class RotatedMNIST(Rotated):
    """Rotated's stream over MNIST: 60000 / 10000 images of 28 x 28."""

    name = "rotated_mnist"
    source = MNIST

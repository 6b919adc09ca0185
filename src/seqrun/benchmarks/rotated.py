"""Rotated Digits and Rotated MNIST: every task rotates the same images by another angle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seqrun.benchmarks.base import BaseBenchmark, TaskDraw
from seqrun.benchmarks.digits import DIGITS
from seqrun.benchmarks.mnist import MNIST
from seqrun.benchmarks.rotation import INTERPOLATIONS, rotate
from seqrun.benchmarks.tasks import changed_images
from seqrun.checks import ConfigError, finite, finite_list, one_of
from seqrun.plan import Dataset


@dataclass(kw_only=True, eq=False)
class Rotated(BaseBenchmark):
    """Rotate images counter-clockwise by (t - 1) * per_task_rotation + d_t degrees in task t.

    d_t is 0, or drawn from U(random_rotation) independently for each task; training and test images
    of a task are rotated by the same angle. Lopez-Paz and Ranzato, Gradient Episodic Memory for
    Continual Learning, 2017 (1706.08840); fixed angles as Mirzadeh et al., 2020 (2010.04495).
    With `pad_to` images are padded first, so that corners may rotate into the padding.

    Args:
        per_task_rotation: degrees, any finite number.
        random_rotation: [low, high] degrees, low < high; None = d_t = 0.
        angles: degrees of each task, instead of both.
        interpolation: "bilinear" or "nearest", identical to PIL's to the bit.

    See BaseBenchmark for the others.
    """

    num_tasks: int = 5
    per_task_rotation: float = 36.0
    random_rotation: Sequence[float] | None = None
    angles: Sequence[float] | None = None
    interpolation: str = "bilinear"

    scenarios = ("domain",)

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        one_of("benchmark.interpolation", self.interpolation, INTERPOLATIONS)
        finite("benchmark.per_task_rotation", self.per_task_rotation)
        finite_list("benchmark.angles", self.angles, self.num_tasks, "one per task")
        finite_list("benchmark.random_rotation", self.random_rotation, 2, "low < high")
        if self.random_rotation is not None:
            low, high = self.random_rotation
            key = f"benchmark.random_rotation={self.random_rotation!r}"
            if low >= high:
                raise ConfigError(f"{key}: must be null or a list of 2 numbers, low < high")
            if self.angles is not None:
                raise ConfigError(
                    f"{key}: must be null beside benchmark.angles, which are used as they are"
                )
        self._check_sizes([sum(self.image_source.train_counts)])

    def angle(self, t: int) -> float:
        """Return the degrees that task t (1-based) is rotated by."""
        if self.angles is not None:
            return float(self.angles[t - 1])
        fixed = float((t - 1) * self.per_task_rotation)
        if self.random_rotation is None:
            return fixed
        low, high = self.random_rotation
        return fixed + self.streams.generator("tasks", TaskDraw.ANGLES, t).uniform(low, high)

    def prepare_datasets(self) -> tuple[Mapping[int, Dataset], Mapping[int, Dataset]]:
        """Return tasks whose images are rotated when they are read."""

        def turn(images: np.ndarray, task: int) -> np.ndarray:
            return rotate(self.padded(images), self.angle(task), self.interpolation)

        raw = self.load_images()
        return (
            changed_images(self.num_tasks, raw.x_train, raw.y_train, turn),
            changed_images(self.num_tasks, raw.x_test, raw.y_test, turn),
        )


class RotatedDigits(Rotated):
    """Rotated's stream over scikit-learn's embedded digits: 1440 / 357 images of 8 x 8."""

    name = "rotated_digits"
    source = DIGITS


class RotatedMNIST(Rotated):
    """Rotated's stream over MNIST: 60000 / 10000 images of 28 x 28."""

    name = "rotated_mnist"
    source = MNIST

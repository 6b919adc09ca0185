"""Split Digits and Split MNIST: every task brings its own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seqrun.benchmarks.base import BaseBenchmark, Dataset, Draw
from seqrun.benchmarks.dataset import LazyTasks, Rows
from seqrun.benchmarks.digits import DIGITS
from seqrun.benchmarks.mnist import MNIST
from seqrun.checks import ConfigError, one_of


@dataclass(kw_only=True, eq=False)
class Split(BaseBenchmark):
    """Give task t the classes class_order[(t - 1) * k : t * k], k = classes / num_tasks.

    A label is its class's position in `class_order` ("task" and "class") or its position within
    the task ("domain", one head of k outputs). Scenarios: van de Ven and Tolias, Three Scenarios
    for Continual Learning, 2019 (1904.07734); Hsu et al., 2018 (1810.12488).

    Args:
        num_tasks: divides the number of classes; at least 2 classes per task for "task" and
            "domain", where one alone would always be right.
        class_order: every class once; None = natural order; "random" = drawn from the stream
            "tasks".
        softmax_over: in scenario "class", train over the classes "seen" so far or over "all".

    See BaseBenchmark for the others.
    """

    num_tasks: int = 5
    scenario: str = "task"
    class_order: Sequence[int] | str | None = None
    softmax_over: str = "seen"

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        one_of("benchmark.softmax_over", self.softmax_over, ("seen", "all"))
        classes = self.source.num_classes
        if self.num_tasks > classes:
            raise ConfigError(
                f"benchmark.num_tasks={self.num_tasks}: must be at most {classes}, the number of "
                "classes"
            )
        if classes % self.num_tasks:
            divisors = [n for n in range(1, classes + 1) if classes % n == 0]
            raise ConfigError(
                f"benchmark.num_tasks={self.num_tasks}: must divide the {classes} classes evenly "
                f"({', '.join(map(str, divisors))})"
            )
        self.classes_per_task = classes // self.num_tasks
        if self.classes_per_task == 1 and self.scenario != "class":
            raise ConfigError(
                f"benchmark.num_tasks={self.num_tasks}: must leave at least 2 classes per task in "
                f"scenario {self.scenario}"
            )
        self._check_class_order(classes)
        if self.scenario == "domain":
            self.num_classes = self.classes_per_task
        self._check_sizes(self._smallest_tasks())

    def _check_class_order(self, classes: int) -> None:
        order = self.class_order
        if order is None or order == "random":
            return
        listed = isinstance(order, Sequence) and not isinstance(order, str)
        if not listed or sorted(order, key=str) != sorted(range(classes), key=str):
            raise ConfigError(
                f"benchmark.class_order={order!r}: must be null, random, or a list with each "
                f"class 0..{classes - 1} once"
            )

    def _smallest_tasks(self) -> list[int]:
        """Return the training samples of each task, or of the smallest that chance could make."""
        counts = self.source.train_counts
        if self.class_order == "random":
            return [sum(sorted(counts)[: self.classes_per_task])]
        per_task = self._by_task(np.asarray(counts)[self.ordered_classes()])
        return per_task.sum(axis=1).tolist()

    def _by_task(self, ordered: np.ndarray) -> np.ndarray:
        return ordered.reshape(self.num_tasks, self.classes_per_task)

    def ordered_classes(self) -> np.ndarray:
        """Return the source's classes in the order of the stream, (classes,) int."""
        classes = self.source.num_classes
        if self.class_order is None:
            return np.arange(classes)
        if self.class_order == "random":
            return self.streams.generator("tasks", Draw.CLASS_ORDER).permutation(classes)
        return np.asarray(list(self.class_order), int)

    def prepare_datasets(self) -> tuple[Mapping[int, Dataset], Mapping[int, Dataset]]:
        """Return one task per group of classes, samples in the source's order."""
        order = self.ordered_classes()
        position = np.argsort(order).astype(np.int32)
        task_of_class = position // self.classes_per_task
        label_of_class = position
        if self.scenario == "domain":
            label_of_class = position % self.classes_per_task
        else:
            task_of_label = np.arange(len(order)) // self.classes_per_task
            self.class_mask = task_of_label == np.arange(self.num_tasks)[:, None]

        def split(x: np.ndarray, y: np.ndarray) -> LazyTasks:
            tasks, labels = task_of_class[y], label_of_class[y]
            members = [np.flatnonzero(tasks == task) for task in range(self.num_tasks)]

            def read(task: int, rows: Rows) -> Dataset:
                chosen = members[task - 1][rows]
                return Dataset.of_task(x[chosen], labels[chosen], task)

            return LazyTasks([len(m) for m in members], read)

        raw = self.source.load(self.data_dir)
        return split(raw.x_train, raw.y_train), split(raw.x_test, raw.y_test)


class SplitDigits(Split):
    """Split's stream over scikit-learn's embedded digits: 1440 / 357 images of 8 x 8."""

    name = "split_digits"
    source = DIGITS


class SplitMNIST(Split):
    """Split's stream over MNIST: 60000 / 10000 images of 28 x 28."""

    name = "split_mnist"
    source = MNIST

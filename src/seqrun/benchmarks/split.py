"""Split Digits and Split MNIST: every task has its own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seqrun.benchmarks.base import BaseBenchmark, TaskDraw
from seqrun.benchmarks.digits import DIGITS
from seqrun.benchmarks.mnist import MNIST
from seqrun.benchmarks.tasks import LazyTasks
from seqrun.checks import ConfigError, one_of, whole, whole_entries
from seqrun.plan import Dataset, RandomStreams, Rows


@dataclass(kw_only=True, eq=False)
class Split(BaseBenchmark):
    """Split the classes into tasks, in the order of `class_order`.

    A label is the position of its class in `class_order` ("task" and "class") or within the task
    ("domain": one head with as many outputs as the largest task has classes). Scenarios:
    van de Ven and Tolias, Three Scenarios for Continual Learning, 2019 (1904.07734); Hsu et al.,
    2018 (1810.12488).

    Args:
        num_tasks: must divide the number of classes, unless `classes_per_task` is given.
        classes_per_task: an integer, or one per task; None = all classes, divided evenly. At least
            2 in "task" and "domain", where a single class would always be right. If they do not
            add up to all classes, the last ones of `class_order` are left out and have no output.
        class_order: every class once; None = natural order; "random" = drawn from the stream
            "tasks".
        class_order_seed: for "random", fixes the order whatever the run's seed: it is the order
            that a run with this seed would draw. None = the run's seed.
        softmax_over: in scenario "class", train over and predict among the classes "seen" so far,
            or "all" classes.

    See BaseBenchmark for the others.
    """

    num_tasks: int = 5
    scenario: str = "task"
    classes_per_task: int | Sequence[int] | None = None
    class_order: Sequence[int] | str | None = None
    class_order_seed: int | None = None
    softmax_over: str = "seen"

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        one_of("benchmark.softmax_over", self.softmax_over, ("seen", "all"))
        self._check_class_order(self.image_source.num_classes)
        self.class_counts = self._class_counts(self.image_source.num_classes)
        domain = self.scenario == "domain"
        self.num_classes = max(self.class_counts) if domain else sum(self.class_counts)
        self._check_sizes(self._smallest_tasks())

    def _check_class_order(self, classes: int) -> None:
        order = self.class_order
        if order is not None and order != "random":
            listed = isinstance(order, Sequence) and not isinstance(order, str)
            if not listed or sorted(order, key=str) != sorted(range(classes), key=str):
                raise ConfigError(
                    f"benchmark.class_order={order!r}: must be null, random, or a list with each "
                    f"class 0..{classes - 1} once"
                )
        if self.class_order_seed is not None:
            whole("benchmark.class_order_seed", self.class_order_seed, 0)
            if order != "random":
                raise ConfigError(
                    f"benchmark.class_order_seed={self.class_order_seed}: must be null unless "
                    "benchmark.class_order=random"
                )

    def _class_counts(self, classes: int) -> list[int]:
        """Return the number of classes of each task."""
        fewest = 1 if self.scenario == "class" else 2
        given = self.classes_per_task
        key = "benchmark.classes_per_task"
        if given is None:
            counts = [self._even_count(classes, fewest)] * self.num_tasks
        elif isinstance(given, Sequence) and not isinstance(given, str):
            if len(given) != self.num_tasks:
                raise ConfigError(
                    f"{key}={list(given)}: must be an integer or a list of "
                    f"benchmark.num_tasks={self.num_tasks} integers"
                )
            whole_entries(key, given, fewest)
            counts = list(given)
        else:
            whole(key, given, fewest)
            counts = [given] * self.num_tasks
        if sum(counts) > classes:
            raise ConfigError(
                f"{key}={given}: makes {sum(counts)} classes in {self.num_tasks} tasks, must make "
                f"at most {classes}, the number of classes"
            )
        return counts

    def _even_count(self, classes: int, fewest: int) -> int:
        most = classes // fewest
        divisors = [n for n in range(1, most + 1) if classes % n == 0]
        if self.num_tasks not in divisors:
            alone = "" if fewest == 1 else f", with {fewest} or more in each"
            uneven = ", or come with benchmark.classes_per_task" if self.num_tasks <= most else ""
            raise ConfigError(
                f"benchmark.num_tasks={self.num_tasks}: must divide the {classes} classes evenly"
                f"{alone} ({', '.join(map(str, divisors))}){uneven}"
            )
        return classes // self.num_tasks

    def _smallest_tasks(self) -> list[int]:
        """Return the training samples of each task, or their minimum if the order is random."""
        counts = np.asarray(self.image_source.train_counts)
        if self.class_order == "random" and self.class_order_seed is None:
            smallest = np.sort(counts)
            return [int(smallest[:number].sum()) for number in self.class_counts]
        ordered, ends = counts[self.ordered_classes()], np.cumsum(self.class_counts)
        return [int(task.sum()) for task in np.split(ordered, ends)[: self.num_tasks]]

    def ordered_classes(self) -> np.ndarray:
        """Return the source's classes in the order of the stream, (classes,) int."""
        classes = self.image_source.num_classes
        if self.class_order is None:
            return np.arange(classes)
        if self.class_order == "random":
            own = self.class_order_seed
            streams = self.streams if own is None else RandomStreams(own)
            return streams.generator("tasks", TaskDraw.CLASS_ORDER).permutation(classes)
        return np.asarray(list(self.class_order), int)

    def prepare_datasets(self) -> tuple[Mapping[int, Dataset], Mapping[int, Dataset]]:
        """Return one task per group of classes, samples in the source's order."""
        order, counts = self.ordered_classes(), np.asarray(self.class_counts)
        used = order[: counts.sum()]
        label = np.arange(len(used), dtype=np.int32)
        task = np.repeat(np.arange(self.num_tasks), counts)
        if self.scenario == "domain":
            label -= np.repeat(np.cumsum(counts) - counts, counts).astype(np.int32)
        else:
            self.class_mask = task == np.arange(self.num_tasks)[:, None]
        task_of_class = np.full(len(order), -1)
        label_of_class = np.full(len(order), -1, np.int32)
        task_of_class[used], label_of_class[used] = task, label

        def split(x: np.ndarray, y: np.ndarray) -> LazyTasks:
            tasks, labels = task_of_class[y], label_of_class[y]
            members = [np.flatnonzero(tasks == task) for task in range(self.num_tasks)]

            def read(task: int, rows: Rows) -> Dataset:
                chosen = members[task - 1][rows]
                return Dataset.of_task(self.padded(x[chosen]), labels[chosen], task)

            return LazyTasks([len(m) for m in members], read)

        raw = self.load_images()
        return split(raw.x_train, raw.y_train), split(raw.x_test, raw.y_test)


class SplitDigits(Split):
    """Split's stream over scikit-learn's embedded digits: 1440 / 357 images of 8 x 8."""

    name = "split_digits"
    source = DIGITS


class SplitMNIST(Split):
    """Split's stream over MNIST: 60000 / 10000 images of 28 x 28."""

    name = "split_mnist"
    source = MNIST

"""BaseBenchmark: a recipe for a stream of tasks as arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from seqrun.benchmarks.normalization import check_channels, measured_of, stated_transform
from seqrun.benchmarks.source import ImageSource, RawImages
from seqrun.benchmarks.tasks import Transform, concatenate, pad, read_rows, size_of
from seqrun.benchmarks.validity import check_tasks, checked_task
from seqrun.checks import (
    ConfigError,
    Numerics,
    boolean,
    of_task,
    one_of,
    one_per_task,
    whole,
    whole_per_task,
    within,
)
from seqrun.plan import ALL_ROWS, Dataset, RandomStreams, Rows

SCENARIOS = ("task", "domain", "class")


class TaskDraw(IntEnum):
    """What a generator of the stream "tasks" is for: the first number of its `position`."""

    VALIDATION = 0
    SUBSET = 1
    PERMUTATION = 2
    CLASS_ORDER = 3
    ANGLES = 4


@dataclass(kw_only=True, eq=False)
class BaseBenchmark:
    """A stream of tasks; a new benchmark only needs to implement `prepare_datasets`.

    Tasks are 1-based in every argument; `Dataset.t` is 0-based. After `prepare`, `num_classes`
    (outputs of the network), `input_shape` (H, W, C), `transform` and `class_mask` ((T, C) bool,
    the classes of each task; None = every class in every task) describe the stream. What a
    benchmark does not set is taken from its data. Until then, `num_classes` and `input_shape` are
    missing attributes.

    Args:
        num_tasks: length of the stream, >= 1.
        batch_size: samples of a training batch, >= 1; one integer, or one per task.
        eval_batch_size: samples of an evaluation batch, >= 1; affects results only by rounding.
        scenario: "task" (the task is known at test time), "domain" (the same classes in every
            task) or "class" (all classes compete), if the benchmark supports it.
        samples_per_task: training samples of each task, drawn at random, >= 1; None = all.
        validation_fraction: fraction of each task's training data that is held out and replaces
            the test data in evaluation, in [0, 1). Tasks of the same size hold out the same rows,
            so that tasks made of the same images hold out the same images.
        pad_to: first pad the images with black to squares with this side in pixels, at least the
            images' longer side; None = no padding.
        normalize: subtract the mean of the source's training pixels and divide by their standard
            deviation (of the images before padding); otherwise inputs are in [0, 1].
        mean, std: values that `normalize` uses instead of the source's, one number per channel,
            for pixels in [0, 1]; std > 0.
        crop_padding: black pixels added on each side of a training image before a random crop of
            the original size, from 0 (no crops) to the image's shorter side.
        horizontal_flip: mirror each training image with probability 1/2.
        data_dir: folder of the data sets; None = $SEQRUN_DATA, else ./data.

    Raises:
        ConfigError: a value out of range.
    """

    num_tasks: int
    batch_size: Any = 10  # int | list[int]
    eval_batch_size: int = 1000
    scenario: str = "domain"
    samples_per_task: int | None = None
    validation_fraction: float = 0.0
    pad_to: int | None = None
    normalize: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    crop_padding: int = 0
    horizontal_flip: bool = False
    data_dir: str | Path | None = None

    transform: Transform = field(init=False, default=Transform())
    class_mask: np.ndarray | None = field(init=False, default=None, repr=False)
    source: ImageSource | None = field(init=False, default=None, repr=False)
    num_classes: int = field(init=False, repr=False)
    input_shape: tuple[int, int, int] = field(init=False, repr=False)

    name: ClassVar[str] = "base"
    numerics: ClassVar[Numerics] = 1
    scenarios: ClassVar[tuple[str, ...]] = SCENARIOS
    softmax_over = "seen"

    def __post_init__(self) -> None:
        """Check the arguments and copy what the source states."""
        whole("benchmark.num_tasks", self.num_tasks, 1)
        whole_per_task("benchmark.batch_size", self.batch_size, 1)
        one_per_task("benchmark.batch_size", self.batch_size, self.num_tasks)
        whole("benchmark.eval_batch_size", self.eval_batch_size, 1)
        one_of("benchmark.scenario", self.scenario, self.scenarios)
        if self.samples_per_task is not None:
            whole("benchmark.samples_per_task", self.samples_per_task, 1)
        within("benchmark.validation_fraction", self.validation_fraction, 0, 1, open_high=True)
        boolean("benchmark.normalize", self.normalize)
        whole("benchmark.crop_padding", self.crop_padding, 0)
        boolean("benchmark.horizontal_flip", self.horizontal_flip)
        if not (self.data_dir is None or (isinstance(self.data_dir, (str, os.PathLike)))):
            raise ConfigError(f"data_dir={self.data_dir!r}: must be a path or null")
        if self.source is not None:
            self.num_classes = self.source.num_classes
            self.input_shape = self.source.input_shape
        if self.pad_to is not None:
            if self.source is None:
                raise ConfigError(
                    f"benchmark.pad_to={self.pad_to!r}: must be null, since this benchmark makes "
                    "its own images"
                )
            height, width, channels = self.source.input_shape
            whole("benchmark.pad_to", self.pad_to, max(height, width))
            self.input_shape = (self.pad_to, self.pad_to, channels)
        self.transform = stated_transform(self.normalize, self.mean, self.std, self.source)
        if self.knows("input_shape"):
            self._check_shape(self.input_shape)

    def knows(self, name: str) -> bool:
        """Return whether "num_classes" or "input_shape" is set, possibly before `prepare`."""
        return hasattr(self, name)

    @property
    def image_source(self) -> ImageSource:
        """The source of the images.

        Raises:
            RuntimeError: the benchmark has none, but makes its own images.
        """
        if self.source is None:
            raise RuntimeError(f"benchmark {self.name} has no source: it makes its own images")
        return self.source

    def prepare_datasets(self) -> tuple[Mapping[int, Dataset], Mapping[int, Dataset]]:
        """Return the training and the test data of every task: task (1-based) -> Dataset.

        `self.streams` has the random streams; draw from `generator("tasks", ...)`. The mappings may
        be dictionaries, or LazyTasks if the whole stream does not fit in memory.
        """
        raise NotImplementedError

    def load_images(self) -> RawImages:
        """Load the source's images; measure their mean and std if needed and not stated."""
        raw = self.image_source.load(self.data_dir)
        if self.normalize and self.transform.mean is None:
            self.transform = measured_of(self.data_checksum(), raw.x_train)
        return raw

    def padded(self, images: np.ndarray) -> np.ndarray:
        """Return (N, H, W, C) images of the source, padded to the size of the stream's images."""
        return images if self.pad_to is None else pad(images, self.pad_to)

    def check_data(self) -> None:
        """Raise ConfigError if the data are missing, damaged, or cannot be normalised as asked."""
        if self.source is None:
            return
        self.source.check(self.data_dir)
        if self.normalize and self.transform.mean is None:
            self.load_images()

    def data_checksum(self) -> str:
        """Return a checksum of the data without loading them; "" = not known."""
        if self.source is None:
            return ""
        if self.source.checksum_in is not None:
            return self.source.checksum_in(self.data_dir)
        return self.source.checksum

    def prepare(self, streams: RandomStreams) -> None:
        """Load the data and make the stream; drop the memories of an earlier stream.

        Raises:
            ConfigError: data are missing, damaged, inconsistent, or too few for the options.
        """
        self.streams = streams
        self.class_mask = None
        self._cache: dict[tuple[str, int], Dataset] = {}
        self._memories: dict[int, Dataset] = {}
        train, test = self.prepare_datasets()
        check_tasks(train, self.num_tasks, "train")
        check_tasks(test, self.num_tasks, "test")
        self._train, self._test = train, test
        self._check_sizes([size_of(train, task) for task in range(1, self.num_tasks + 1)])
        self._describe_data()

    @property
    def evaluation_split(self) -> str:
        """The split that results are measured on: "test", or "validation" if data are held out."""
        return "validation" if self.validation_fraction > 0 else "test"

    def batch_size_of(self, t: int) -> int:
        """Return the batch size of task t."""
        return of_task(self.batch_size, t)

    @property
    def largest_batch_size(self) -> int:
        """The largest batch size of all tasks."""
        return max(self.batch_size_of(t) for t in range(1, self.num_tasks + 1))

    def task_size(self, t: int, split: str = "train") -> int:
        """Return the number of samples of task t without computing them."""
        self._check_position(t, split)
        if split == "test":
            return size_of(self._test, t)
        rows = self._rows(t, split)
        return len(rows) if isinstance(rows, np.ndarray) else size_of(self._train, t)

    def task_data(self, t: int, split: str = "train") -> Dataset:
        """Return the samples of task t.

        Training data are cached only for the task read last, other splits for every task.

        Raises:
            ValueError: no such task or split.
        """
        self._check_position(t, split)
        if (split, t) not in self._cache:
            if split == "train":
                self._cache = {key: d for key, d in self._cache.items() if key[0] != "train"}
            tasks = self._test if split == "test" else self._train
            data = read_rows(tasks, t, self._rows(t, split))
            self._cache[split, t] = checked_task(data, t, split, self.input_shape, self.num_classes)
        return self._cache[split, t]

    def cumulative_data(self, t: int, split: str = "train") -> Dataset:
        """Return the samples of tasks 1 to t, task after task."""
        return concatenate([self.task_data(task, split) for task in range(1, t + 1)])

    def set_memory(self, t: int, indices: np.ndarray) -> None:
        """Store some training samples of task t as its memory, replacing an earlier one.

        Args:
            t: task, 1-based.
            indices: (M,) rows of `task_data(t)`, M >= 0.
        """
        self._memories[t] = self.task_data(t).rows(np.asarray(indices, np.intp))

    def memory_data(self, tasks: int | Iterable[int]) -> Dataset:
        """Return the memories of one or several tasks, in the given order; possibly no rows."""
        wanted = list(tasks) if isinstance(tasks, Iterable) else [tasks]
        for task in wanted:
            self._check_position(task, "train")
        return concatenate(
            [self._empty(), *(self._memories[task] for task in wanted if task in self._memories)]
        )

    def task_with_memories(self, t: int) -> Dataset:
        """Return the training samples of task t followed by the memories of tasks 1 to t - 1."""
        return concatenate([self.task_data(t), self.memory_data(range(1, t))])

    def _empty(self) -> Dataset:
        none = np.empty(0, np.int32)
        return Dataset(np.empty((0, *self.input_shape), np.uint8), none, none)

    def _rows(self, t: int, split: str) -> Rows:
        """Return the task's rows that belong to a split; the only place where they are chosen."""
        if split == "test" or (not self.validation_fraction and self.samples_per_task is None):
            return ALL_ROWS
        size = size_of(self._train, t)
        held_out = self._num_held_out(size)
        order = self.streams.generator("tasks", TaskDraw.VALIDATION).permutation(size)
        if split == "validation":
            return np.sort(order[:held_out])
        rows = np.sort(order[held_out:])
        if self.samples_per_task is not None:
            rng = self.streams.generator("tasks", TaskDraw.SUBSET, t)
            rows = np.sort(rng.choice(rows, self.samples_per_task, replace=False))
        return rows

    def _num_held_out(self, size: int) -> int:
        return max(1, round(size * self.validation_fraction)) if self.validation_fraction else 0

    def _check_sizes(self, sizes: Sequence[int]) -> None:
        """Raise ConfigError unless tasks with `sizes` training samples have enough samples."""
        for task, size in enumerate(sizes, 1):
            left = size - self._num_held_out(size)
            if left < 1:
                raise ConfigError(
                    f"benchmark.validation_fraction={self.validation_fraction}: leaves none of the "
                    f"{size} training samples of task {task}"
                )
            if self.samples_per_task is not None and self.samples_per_task > left:
                raise ConfigError(
                    f"benchmark.samples_per_task={self.samples_per_task}: must be at most {left}, "
                    f"the training samples of task {task}"
                )

    def _check_shape(self, input_shape: tuple[int, int, int]) -> None:
        """Raise ConfigError unless (H, W, C) images can be normalised and cropped as configured."""
        check_channels(self.transform, input_shape[2])
        side = min(input_shape[:2])
        if self.crop_padding > side:
            raise ConfigError(
                f"benchmark.crop_padding={self.crop_padding}: must be at most {side}, the shorter "
                "side of the images"
            )

    def _check_position(self, t: int, split: str) -> None:
        if not hasattr(self, "_train"):
            raise RuntimeError("call prepare(streams) before reading data")
        splits = ("train", "validation", "test") if self.validation_fraction else ("train", "test")
        if split not in splits:
            raise ValueError(f"split={split!r}: must be one of {', '.join(splits)}")
        if t not in range(1, self.num_tasks + 1):
            raise ValueError(f"task {t}: must be in 1..{self.num_tasks}")

    def _describe_data(self) -> None:
        """Infer from the data what the benchmark does not state.

        The test data are used only if results are measured on them.
        """
        if not self.knows("input_shape"):
            self.input_shape = read_rows(self._train, 1, slice(1)).x.shape[1:]
            self._check_shape(self.input_shape)
        unstated_mask = self.class_mask is None and self.scenario != "domain"
        if unstated_mask or not self.knows("num_classes"):
            tasks = range(1, self.num_tasks + 1)
            parts = [self._train] if self.validation_fraction else [self._train, self._test]
            labels = [np.unique(np.concatenate([p[t].y for p in parts])).astype(int) for t in tasks]
            if not self.knows("num_classes"):
                self.num_classes = 1 + max(int(seen.max()) for seen in labels)
            if unstated_mask:
                self.class_mask = np.zeros((self.num_tasks, self.num_classes), bool)
                for row, seen in zip(self.class_mask, labels, strict=True):
                    row[seen[(seen >= 0) & (seen < self.num_classes)]] = True
        if self.class_mask is not None and self.class_mask.shape != (
            self.num_tasks,
            self.num_classes,
        ):
            raise ConfigError(
                f"benchmark: class_mask has shape {self.class_mask.shape}, must have "
                f"{(self.num_tasks, self.num_classes)}"
            )


def evaluation_sizes(benchmark: BaseBenchmark, split: str | None = None) -> list[int]:
    """Return the number of samples that each task's accuracy is measured on.

    Args:
        benchmark: the prepared stream.
        split: "test" or "validation"; None = the one that the benchmark names.
    """
    split = split or benchmark.evaluation_split
    return [benchmark.task_size(t, split) for t in range(1, benchmark.num_tasks + 1)]

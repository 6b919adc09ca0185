"""What every benchmark offers: tasks, cumulative data, memories, subsets, validation, chance."""

from __future__ import annotations

import numpy as np
import pytest

from seqrun.benchmarks import (
    BaseBenchmark,
    Dataset,
    LazyTasks,
    PermutedDigits,
    RotatedDigits,
    SplitDigits,
)
from seqrun.checks import ConfigError
from seqrun.plan import RandomStreams

KINDS = (RotatedDigits, PermutedDigits, SplitDigits)


class Counting(BaseBenchmark):
    """Two classes, four 1 x 1 images per task; pixel = 10 * task + row."""

    name = "counting"

    def prepare_datasets(self):
        """Return two dictionaries."""

        def tasks(rows):
            return {
                t: Dataset(
                    np.array([10 * t + r for r in rows], np.uint8).reshape(-1, 1, 1, 1),
                    np.array([r % 2 for r in rows]),
                    np.full(len(rows), t - 1),
                )
                for t in range(1, self.num_tasks + 1)
            }

        return tasks(range(4)), tasks(range(4, 6))


def pixels(data):
    """Return the one pixel of each image."""
    return data.x.ravel().tolist()


@pytest.fixture
def counting(streams):
    """Return a prepared stream of three tasks."""
    benchmark = Counting(num_tasks=3)
    benchmark.prepare(streams)
    return benchmark


def test_a_new_benchmark_needs_prepare_datasets_alone(counting):
    """Everything else is taken from its data."""
    assert (counting.num_classes, counting.input_shape) == (2, (1, 1, 1))
    assert counting.class_mask is None and counting.transform.mean is None
    assert counting.evaluation_split == "test" and counting.data_checksum() == ""
    data = counting.task_data(2, "train")
    assert pixels(data) == [20, 21, 22, 23]
    assert (data.y.tolist(), data.t.tolist()) == ([0, 1, 0, 1], [1, 1, 1, 1])
    assert data.y.dtype == data.t.dtype == np.int32
    assert pixels(counting.task_data(3, "test")) == [34, 35]
    assert [counting.task_size(2, split) for split in ("train", "test")] == [4, 2]


def test_cumulative_data_are_tasks_one_to_t_in_order(counting):
    """Task after task, with each sample's own task."""
    data = counting.cumulative_data(2, "test")
    assert (pixels(data), data.t.tolist()) == ([14, 15, 24, 25], [0, 0, 1, 1])
    assert len(counting.cumulative_data(3, "train").y) == 12


def test_memories_of_one_and_of_several_tasks(counting):
    """In the order asked for; a task without memory gives none; a new memory replaces the old."""
    assert len(counting.memory_data(1).y) == 0
    assert counting.memory_data([]).x.shape == (0, 1, 1, 1)
    counting.set_memory(1, np.array([2, 0]))
    counting.set_memory(2, np.array([3]))
    assert pixels(counting.memory_data(1)) == [12, 10]
    several = counting.memory_data([2, 1, 3])
    assert (pixels(several), several.t.tolist()) == ([23, 12, 10], [1, 0, 0])
    counting.set_memory(1, np.array([1]))
    assert pixels(counting.memory_data(range(1, 3))) == [11, 23]


def test_current_task_with_the_memories_of_past_tasks(counting):
    """The current task first, so that its rows keep their places; its own memory is left out."""
    for task in (1, 2, 3):
        counting.set_memory(task, np.array([task - 1]))
    data = counting.task_with_memories(3)
    assert (pixels(data), data.t.tolist()) == ([30, 31, 32, 33, 10, 21], [2] * 4 + [0, 1])
    assert pixels(counting.task_with_memories(1)) == [10, 11, 12, 13]


def test_preparing_again_forgets_memories(counting, streams):
    """A second seed in the same process starts from nothing."""
    counting.set_memory(1, np.array([0]))
    counting.prepare(streams)
    assert len(counting.memory_data([1, 2, 3]).y) == 0


def test_lazy_tasks_are_computed_when_read_and_the_last_training_task_alone_is_kept(streams):
    """Twenty tasks must not be held at once."""
    reads = []

    class Lazy(BaseBenchmark):
        def prepare_datasets(self):
            def tasks(split):
                def read(task, rows):
                    reads.append((split, task))
                    x = np.zeros((6, 2, 2, 1), np.uint8)
                    return Dataset.of_task(x[rows], np.arange(6)[rows], task)

                return LazyTasks([6] * self.num_tasks, read)

            self.num_classes, self.input_shape = 6, (2, 2, 1)
            return tasks("train"), tasks("test")

    benchmark = Lazy(num_tasks=4)
    benchmark.prepare(streams)
    assert benchmark.task_size(3) == 6 and not reads
    for _ in range(2):
        benchmark.task_data(1, "train"), benchmark.task_data(1, "test")
    assert reads == [("train", 1), ("test", 1)]
    benchmark.task_data(2, "train"), benchmark.task_data(1, "test"), benchmark.task_data(1, "train")
    assert reads[2:] == [("train", 2), ("train", 1)]
    assert list(benchmark._train) == [1, 2, 3, 4]
    with pytest.raises(KeyError):
        benchmark._train[5]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_per_task_are_a_random_subset_of_each_task(kind, streams):
    """The subset's images are the task's own, without repetition; the test data stay whole."""
    few, whole = kind(samples_per_task=50), kind()
    few.prepare(streams), whole.prepare(streams)
    assert few.task_size(2) == len(few.task_data(2).y) == 50
    rows = few._rows(2, "train")
    assert len(set(rows)) == 50 and rows.max() > 100
    for ours, all_of_them in zip(few.task_data(2), whole.task_data(2).rows(rows), strict=True):
        np.testing.assert_array_equal(ours, all_of_them)
    assert few.task_size(1, "test") == whole.task_size(1, "test")
    assert not np.array_equal(few._rows(1, "train"), rows)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_held_out_of_the_training_data(kind, streams):
    """Both parts together are the task, and do not overlap."""
    benchmark, whole = kind(validation_fraction=0.25), kind()
    benchmark.prepare(streams), whole.prepare(streams)
    assert benchmark.evaluation_split == "validation"
    size = whole.task_size(3)
    held_out, rest = benchmark._rows(3, "validation"), benchmark._rows(3, "train")
    assert len(held_out) == round(size / 4) == benchmark.task_size(3, "validation")
    assert sorted([*held_out, *rest]) == list(range(size))
    np.testing.assert_array_equal(
        benchmark.task_data(3, "validation").x, whole.task_data(3).x[held_out]
    )
    with pytest.raises(ValueError, match="split='validation': must be one of train, test"):
        whole.task_data(1, "validation")


def test_images_held_out_in_one_task_are_trained_on_in_none(streams):
    """Tasks that show the same images hold out the same ones, also beside a subset."""
    benchmark = RotatedDigits(validation_fraction=0.1, samples_per_task=1000)
    benchmark.prepare(streams)
    held_out = benchmark._rows(1, "validation")
    for task in range(1, 6):
        np.testing.assert_array_equal(benchmark._rows(task, "validation"), held_out)
        assert not set(held_out) & set(benchmark._rows(task, "train"))
        assert benchmark.task_size(task) == 1000


def everything(benchmark, **overrides):
    """Return all that a stream holds."""
    benchmark.prepare(RandomStreams(3, overrides))
    splits = ("train", "test", "validation")
    return [benchmark.cumulative_data(benchmark.num_tasks, split) for split in splits]


def same(one, other):
    """Say whether two streams are equal."""
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b) for p, q in pairs for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RotatedDigits(samples_per_task=60, validation_fraction=0.1),
        lambda: PermutedDigits(samples_per_task=60, validation_fraction=0.1),
        lambda: SplitDigits(class_order="random", validation_fraction=0.1),
    ],
)
def test_chance_comes_from_the_stream_of_tasks_alone(make):
    """The same seed gives the same stream, whatever the other streams' seeds are."""
    stream = everything(make())
    assert same(stream, everything(make()))
    assert same(stream, everything(make(), data=77, memory=78, init=79, noise=80))
    assert not same(stream, everything(make(), tasks=77))


def test_a_position_outside_the_stream_is_refused(counting):
    """Tasks count from 1."""
    for task in (0, 4):
        with pytest.raises(ValueError, match=f"task {task}: must be in 1..3"):
            counting.task_data(task, "train")
    with pytest.raises(RuntimeError, match="prepare"):
        Counting(num_tasks=1).task_data(1)


def test_masks_of_a_new_benchmark_follow_from_its_labels(streams):
    """In the task and class scenarios each task's own classes are marked."""

    class TwoAndOne(BaseBenchmark):
        def prepare_datasets(self):
            x = np.zeros((2, 1, 1, 1), np.uint8)
            both = {1: Dataset.of_task(x, np.array([0, 2]), 1)}
            both[2] = Dataset.of_task(x, np.array([1, 1]), 2)
            return both, both

    benchmark = TwoAndOne(num_tasks=2, scenario="class")
    benchmark.prepare(streams)
    assert benchmark.class_mask.tolist() == [[True, False, True], [False, True, False]]
    domain = TwoAndOne(num_tasks=2)
    domain.prepare(streams)
    assert domain.class_mask is None and domain.num_classes == 3


def broken(**changes):
    """Return a stream of one task with something wrong in it."""
    good = {"x": np.zeros((3, 2, 2, 1), np.uint8), "y": np.array([0, 1, 1])}

    class Broken(BaseBenchmark):
        def prepare_datasets(self):
            self.num_classes, self.input_shape = 2, (2, 2, 1)
            data = Dataset(**{**good, "t": np.zeros(3, int), **changes})
            return {1: data}, {1: Dataset.of_task(good["x"], good["y"], 1)}

    benchmark = Broken(num_tasks=1)
    benchmark.prepare(RandomStreams(0))
    return benchmark.task_data(1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y": np.array([0, 5, 1])}, r"train data of task 1: label 5 must be in 0\.\.1"),
        ({"y": np.array([0, -1, 1])}, "label -1 must be"),
        ({"y": np.array([0, 1])}, "must be 3 integers"),
        ({"y": np.array([0.0, 1.0, 1.0])}, "labels are float64"),
        ({"x": np.zeros((3, 2, 2, 1), np.float32)}, "must be uint8"),
        ({"x": np.zeros((3, 4, 2, 1), np.uint8)}, r"of shape \(4, 2, 1\), must be"),
        ({"x": np.zeros((0, 2, 2, 1), np.uint8), "y": np.zeros(0, int)}, "no train samples"),
    ],
)
def test_inconsistent_data_are_refused(changes, message):
    """A wrong array is named with its task, never trained on."""
    assert len(broken().y) == 3
    with pytest.raises(ConfigError, match=message):
        broken(**changes)


def test_a_task_that_is_missing_is_named(streams):
    """The mappings must have the tasks that were asked for."""

    class Short(Counting):
        def prepare_datasets(self):
            train, test = super().prepare_datasets()
            return train, {1: test[1]}

    with pytest.raises(ConfigError, match=r"num_tasks=2: the test data must have .* \[1\]"):
        Short(num_tasks=2).prepare(streams)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (RotatedDigits, {"num_tasks": 0}, "benchmark.num_tasks=0: must be an integer >= 1"),
        (RotatedDigits, {"batch_size": 0}, "benchmark.batch_size=0"),
        (RotatedDigits, {"eval_batch_size": 1.5}, "benchmark.eval_batch_size=1.5"),
        (RotatedDigits, {"samples_per_task": 0}, "benchmark.samples_per_task=0"),
        (RotatedDigits, {"samples_per_task": 1441}, "samples_per_task=1441: must be at most 1440"),
        (PermutedDigits, {"samples_per_task": 1441}, "must be at most 1440"),
        (SplitDigits, {"samples_per_task": 279}, "must be at most 278, .* of task 5"),
        (
            SplitDigits,
            {"samples_per_task": 279, "class_order": "random"},
            "must be at most 278",
        ),
        (
            RotatedDigits,
            {"samples_per_task": 1440, "validation_fraction": 0.5},
            "must be at most 720",
        ),
        (RotatedDigits, {"validation_fraction": 1.0}, "benchmark.validation_fraction=1.0"),
        (RotatedDigits, {"validation_fraction": 0.9999}, "leaves none of the 1440"),
        (RotatedDigits, {"scenario": "domian"}, "scenario='domian'.*did you mean domain"),
        (RotatedDigits, {"scenario": "class"}, "benchmark.scenario='class': must be one of domain"),
        (RotatedDigits, {"normalize": 1}, "benchmark.normalize=1: must be true or false"),
        (RotatedDigits, {"data_dir": 3}, "data_dir=3: must be a path"),
        (RotatedDigits, {"interpolation": "bicubic"}, "interpolation='bicubic': must be one of"),
        (
            RotatedDigits,
            {"per_task_rotation": float("nan")},
            "per_task_rotation=nan: must be",
        ),
        (RotatedDigits, {"angles": [1, 2]}, r"angles=\[1, 2\]: must be null or a list of 5 num"),
        (RotatedDigits, {"angles": [1, 2, 3, 4, "x"]}, "angles='x'"),
        (PermutedDigits, {"first_task_identity": "no"}, "first_task_identity='no'"),
        (SplitDigits, {"num_tasks": 7}, r"evenly, with 2 or more in each \(1, 2, 5\)$"),
        (SplitDigits, {"num_tasks": 3}, r"each \(1, 2, 5\), or come with benchmark.classes_per"),
        (SplitDigits, {"num_tasks": 10}, r"num_tasks=10: must divide the 10 .* \(1, 2, 5\)$"),
        (
            SplitDigits,
            {"num_tasks": 7, "scenario": "class"},
            r"the 10 classes evenly \(1, 2, 5, 10\), or come with benchmark.classes_per_task",
        ),
        (SplitDigits, {"num_tasks": 20, "scenario": "class"}, r"evenly \(1, 2, 5, 10\)$"),
        (RotatedDigits, {"crop_padding": 9}, "crop_padding=9: must be at most 8, the shorter side"),
        (RotatedDigits, {"crop_padding": 13, "pad_to": 12}, "must be at most 12"),
        (SplitDigits, {"softmax_over": "some"}, "softmax_over='some': must be one of seen, all"),
        (SplitDigits, {"class_order": [0, 1, 1]}, r"class_order=\[0, 1, 1\]: must be null, random"),
        (SplitDigits, {"class_order": "shuffled"}, "class_order='shuffled'"),
        (SplitDigits, {"class_order": list(range(1, 11))}, "each class 0..9 once"),
        (Counting, {"num_tasks": 1, "normalize": True}, "benchmark.normalize=True: must be false"),
    ],
)
def test_bad_options_are_refused_at_construction(kind, options, message):
    """One message with key, value and what is allowed, before any data are touched."""
    with pytest.raises(ConfigError, match=message):
        kind(**options)

"""Split streams: uneven tasks, class orders with a seed of their own, two accuracies of one run."""

from __future__ import annotations

import numpy as np
import pytest
from experiments import every_backend, shared_run

from seqrun.benchmarks import SplitDigits, SplitMNIST
from seqrun.benchmarks.digits import load_digits
from seqrun.benchmarks.mnist import load_mnist
from seqrun.checks import ConfigError
from seqrun.plan import RandomStreams

ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


def prepared(kind=SplitDigits, seed=0, **options):
    """Return a stream, prepared."""
    benchmark = kind(**options)
    benchmark.prepare(RandomStreams(seed))
    return benchmark


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_uneven_tasks_have_the_classes_asked_for(scenario):
    """Ten classes in seven tasks or in three: every image once, in its class's task."""
    raw = load_digits()
    groups = [[3, 1, 4, 0, 5], [9, 2], [6, 8, 7]]
    uneven = prepared(scenario=scenario, num_tasks=3, classes_per_task=[5, 2, 3], class_order=ORDER)
    assert uneven.num_classes == (5 if scenario == "domain" else 10)
    for split, x, y in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        for task, group in enumerate(groups, 1):
            members = [n for n, label in enumerate(y) if label in group]
            data = uneven.task_data(task, split)
            assert len(members) == uneven.task_size(task, split)
            np.testing.assert_array_equal(data.x, x[members])
            within = group if scenario == "domain" else ORDER
            assert data.y.tolist() == [within.index(y[n]) for n in members]
        assert len(uneven.cumulative_data(3, split).y) == len(y)


def test_seven_tasks_of_ten_classes():
    """The mask has a row of its own for each task; one class alone is fine when all compete."""
    counts = [2, 1, 1, 1, 1, 3, 1]
    benchmark = prepared(scenario="class", num_tasks=7, classes_per_task=counts)
    assert benchmark.class_mask.shape == (7, 10)
    assert benchmark.class_mask.sum(axis=1).tolist() == counts
    assert [np.flatnonzero(row).tolist() for row in benchmark.class_mask] == [
        [0, 1], [2], [3], [4], [5], [6, 7, 8], [9],
    ]  # fmt: skip
    assert [sorted(set(benchmark.task_data(t, "test").y)) for t in (1, 6)] == [[0, 1], [6, 7, 8]]


@pytest.mark.parametrize("per_task", [3, [3, 3]])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_classes_that_are_not_used_are_left_out(scenario, per_task):
    """The last of the order are in no task and have no output."""
    raw = load_digits()
    benchmark = prepared(
        num_tasks=2, classes_per_task=per_task, class_order=ORDER, scenario=scenario
    )
    assert benchmark.num_classes == (3 if scenario == "domain" else 6)
    if scenario != "domain":
        assert benchmark.class_mask.tolist() == [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3]
    for task in (1, 2):
        members = np.isin(raw.y_train, ORDER[3 * task - 3 : 3 * task])
        np.testing.assert_array_equal(benchmark.task_data(task).x, raw.x_train[members])


def test_options_go_with_uneven_tasks():
    """Held-out parts and subsets have each task's own size and do not meet."""
    options = {"num_tasks": 3, "classes_per_task": [5, 2, 3], "validation_fraction": 0.2}
    whole = prepared(num_tasks=3, classes_per_task=[5, 2, 3])
    benchmark = prepared(samples_per_task=40, **options)
    rest = prepared(**options)
    # 143 + 145 + 143 + 146 + 147 images of 0 to 4, 149 + 145 of 5 and 6, 144 + 135 + 143 of 7 to 9
    assert [whole.task_size(t) for t in (1, 2, 3)] == [724, 294, 422]
    for task, (held_out, left) in enumerate([(145, 579), (59, 235), (84, 338)], 1):
        assert benchmark.task_size(task, "validation") == held_out
        assert (benchmark.task_size(task), rest.task_size(task)) == (40, left)
        kept, given = rest._rows(task, "train"), rest._rows(task, "validation")
        assert sorted([*kept, *given]) == list(range(held_out + left))
        assert set(benchmark._rows(task, "train")) < set(kept)
        np.testing.assert_array_equal(
            benchmark.task_data(task, "validation").x, whole.task_data(task).x[given]
        )
        assert benchmark.task_data(task).y.shape == (40,)


def test_a_class_order_can_be_the_same_for_every_seed():
    """It is that which the seed itself would draw; the rest of the stream is the run's own."""
    random = {"class_order": "random", "samples_per_task": 50}
    own = [prepared(class_order_seed=3, seed=seed, **random) for seed in (0, 1)]
    orders = [benchmark.ordered_classes().tolist() for benchmark in own]
    assert orders[0] == orders[1] == prepared(seed=3, **random).ordered_classes().tolist()
    assert orders[0] != prepared(seed=0, **random).ordered_classes().tolist()
    assert orders[0] != prepared(class_order_seed=4, **random).ordered_classes().tolist()
    assert own[0].task_data(1).x.tobytes() != own[1].task_data(1).x.tobytes()


def test_preflight_knows_an_order_with_a_seed():
    """The sizes of the very tasks are checked, not those of the smallest that chance could make."""
    # seed, place of "tasks" among the streams, place of the class order
    sequence = np.random.SeedSequence([5, 1, 3])
    order = np.random.Generator(np.random.PCG64(sequence)).permutation(10)
    counts = np.array([143, 145, 143, 146, 147, 149, 145, 144, 135, 143])
    smallest = int(counts[order].reshape(5, 2).sum(1).min())
    options = {"class_order": "random", "class_order_seed": 5}
    assert smallest > 278  # the two smallest classes do not meet
    benchmark = prepared(samples_per_task=smallest, **options)
    assert benchmark.ordered_classes().tolist() == order.tolist()
    with pytest.raises(ConfigError, match=f"must be at most {smallest}"):
        SplitDigits(samples_per_task=smallest + 1, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_tasks": 4}, "num_tasks=4: must divide .* or come with benchmark.classes_per_task"),
        ({"num_tasks": 3, "classes_per_task": [5, 5]}, r"=\[5, 5\]: must be .* list of .*tasks=3"),
        ({"num_tasks": 2, "classes_per_task": [6, 5]}, r"\[6, 5\]: makes 11 .* must make at most"),
        ({"num_tasks": 4, "classes_per_task": 3}, "=3: makes 12 classes in 4 tasks, .* most 10"),
        (
            {"num_tasks": 2, "classes_per_task": [9, 1]},
            r"^benchmark.classes_per_task=\[9, 1\]: must have integers >= 2; entry 2 is 1$",
        ),
        (
            {"classes_per_task": [2, 0, 2, 2, 4], "scenario": "class"},
            r"=\[2, 0, 2, 2, 4\]: must have integers >= 1; entry 2 is 0$",
        ),
        ({"classes_per_task": 0, "scenario": "class"}, "classes_per_task=0: must be an .* >= 1"),
        ({"classes_per_task": "even"}, "classes_per_task='even': must be an integer >= 2"),
        ({"classes_per_task": [2, 2, 2, 2, 2.0]}, "entry 5 is 2.0$"),
        ({"classes_per_task": [True, 2, 2, 2, 2]}, "entry 1 is True$"),
        ({"class_order_seed": 1}, "class_order_seed=1: must be null unless .*class_order=random"),
        ({"class_order_seed": -1, "class_order": "random"}, "class_order_seed=-1: must be an int"),
        (
            {"num_tasks": 2, "classes_per_task": [7, 3], "samples_per_task": 438},
            "must be at most 422, .* of task 2",
        ),
        (
            {
                "num_tasks": 2,
                "classes_per_task": [7, 3],
                "class_order": "random",
                "samples_per_task": 422,
            },
            "must be at most 421, .* of task 2",
        ),
    ],
)
def test_bad_options_are_refused_at_construction(options, message):
    """One message with key, value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        SplitDigits(**options)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_real_mnist_in_five_pairs(mnist_dir, scenario):
    """Sizes and first labels of each pair, with the data's published order."""
    raw = load_mnist(mnist_dir)
    benchmark = prepared(SplitMNIST, scenario=scenario, data_dir=mnist_dir)
    sizes = {"train": [12665, 12089, 11263, 12183, 11800], "test": [2115, 2042, 1874, 1986, 1983]}
    for split, expected in sizes.items():
        assert [benchmark.task_size(t, split) for t in range(1, 6)] == expected
    # The training labels begin 5 0 4 1 9 2 1 3 1 4 3 5 3 6 1 7 2 8 6 9, the test labels
    # 7 2 1 0 4 1 4 9 5 9 0 6 9 0 1 5 9 7 3 4.
    first = {
        "train": [[0, 1, 1, 1, 1], [2, 3, 3, 3, 2], [5, 4, 4, 5], [6, 7, 6], [9, 8, 9]],
        "test": [[1, 0, 1, 0, 0, 1], [2, 3], [4, 4, 5, 5, 4], [7, 6, 7], [9, 9, 9, 9]],
    }
    seen = np.zeros(len(raw.y_test), int)
    for split, labels in first.items():
        for task, classes in enumerate(labels, 1):
            data = benchmark.task_data(task, split)
            shown = data.y + (2 * (task - 1) if scenario == "domain" else 0)
            assert shown[: len(classes)].tolist() == classes
            if split == "test":
                members = np.flatnonzero(raw.y_test // 2 == task - 1)
                seen[members] += 1
                np.testing.assert_array_equal(data.x, raw.x_test[members])
                np.testing.assert_array_equal(shown, raw.y_test[members])
    assert (seen == 1).all()
    together = benchmark.cumulative_data(3, "test")
    assert np.bincount(together.t).tolist() == sizes["test"][:3]
    benchmark.set_memory(1, np.array([5, 0])), benchmark.set_memory(2, np.array([7]))
    mixed = benchmark.task_with_memories(3)
    assert len(mixed.y) == 11263 + 3 and mixed.t[-4:].tolist() == [2, 0, 0, 1]
    np.testing.assert_array_equal(mixed.x[-2], raw.x_train[raw.y_train // 2 == 0][0])


def predictions(weights, x, allowed):
    """Return the classes that a two-layer MLP prefers among those allowed, in plain NumPy."""
    values = x.reshape(len(x), -1) / 255
    for layer in ("hidden_0", "hidden_1"):
        values = values @ weights[f"params/{layer}/kernel"] + weights[f"params/{layer}/bias"]
        values = np.maximum(values, 0)
    logits = values @ weights["params/classifier/kernel"] + weights["params/classifier/bias"]
    return np.asarray(allowed)[logits[:, allowed].argmax(1)]


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("softmax_over", ["seen", "all"])
def test_one_run_has_two_accuracies(backend, softmax_over):
    """All classes competing (those seen, or all), and with the task known, by hand.

    Protocol of Buzzega et al., 2020 (2004.07211): one head, class-IL and task-IL of one run.
    """
    counts = [4, 2, 2, 2]
    stream = {
        "scenario": "class",
        "softmax_over": softmax_over,
        "num_tasks": 4,
        "classes_per_task": counts,
    }
    training = {"epochs_per_task": 1, "evaluate_on": "all"}
    trace = shared_run("naive", backend, benchmark="split_digits", stream=stream, training=training)
    ends = np.cumsum(counts)
    for row in range(5):
        seen = 10 if softmax_over == "all" or row == 0 else ends[row - 1]
        for task in range(1, 5):
            data = trace.algorithm.benchmark.task_data(task, "test")
            weights = trace.rows[row].weights[task]
            own = list(range(ends[task - 1] - counts[task - 1], ends[task - 1]))
            one_sample = 1.01 / len(data.y)  # a tie may be rounded either way
            for matrix, allowed in (
                (trace.matrix, list(range(seen))),
                (trace.algorithm.progress.accuracy_matrix_task_aware, own),
            ):
                expected = (predictions(weights, data.x, allowed) == data.y).mean()
                assert matrix[row, task - 1] == pytest.approx(expected, abs=one_sample)
    aware = trace.algorithm.progress.accuracy_matrix_task_aware
    assert (aware >= trace.matrix).all() and (aware > trace.matrix + 0.3).any()
    future = np.triu(np.ones((5, 4), bool))
    future[0] = False
    if softmax_over == "seen":  # what may not be answered is never right
        assert not trace.matrix[future].any()


@pytest.mark.ci
@every_backend
def test_a_known_task_leaves_its_classes_alone_to_choose_from(backend):
    """Scenario "task": one head for each task, by hand."""
    stream = {"scenario": "task", "num_tasks": 4, "classes_per_task": [4, 2, 2, 2]}
    training = {"epochs_per_task": 1, "evaluate_on": "all"}
    trace = shared_run("naive", backend, benchmark="split_digits", stream=stream, training=training)
    over_all = np.zeros_like(trace.matrix)
    for row in range(5):
        for task, own in enumerate(([0, 1, 2, 3], [4, 5], [6, 7], [8, 9]), 1):
            data = trace.algorithm.benchmark.task_data(task, "test")
            weights = trace.rows[row].weights[task]
            expected = (predictions(weights, data.x, own) == data.y).mean()
            one_sample = 1.01 / len(data.y)
            assert trace.matrix[row, task - 1] == pytest.approx(expected, abs=one_sample)
            every = list(range(10))
            over_all[row, task - 1] = (predictions(weights, data.x, every) == data.y).mean()
    assert (trace.matrix - over_all).max() > 0.3  # the heads matter

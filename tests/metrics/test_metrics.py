"""Metrics: values computed by hand, and properties that hold for any matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seqrun.benchmarks.base import evaluation_sizes
from seqrun.evaluation.metrics import (
    average_accuracy,
    average_forgetting,
    average_forgetting_over_all,
    average_incremental_accuracy,
    backward_transfer,
    compute_metrics,
    forward_transfer,
    learning_accuracy,
    run_metrics,
)

NAN = np.nan
NAMES = [
    "average_accuracy",
    "average_forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "average_incremental_accuracy",
]


@pytest.fixture
def stream() -> np.ndarray:
    """Return a matrix of three tasks, evaluated on the tasks seen and the next one."""
    return np.array(
        [
            [0.10, 0.20, 0.30],
            [0.90, 0.15, NAN],
            [0.70, 0.80, 0.25],
            [0.60, 0.85, 0.95],
        ]
    )


def test_three_tasks(stream):
    assert average_accuracy(stream) == pytest.approx((0.60 + 0.85 + 0.95) / 3)
    assert average_forgetting(stream) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.85)) / 2)
    assert backward_transfer(stream) == pytest.approx(((0.6 - 0.9) + (0.85 - 0.8)) / 2)
    assert forward_transfer(stream) == pytest.approx(((0.15 - 0.2) + (0.25 - 0.3)) / 2)
    assert learning_accuracy(stream) == pytest.approx((0.9 + 0.8 + 0.95) / 3)
    assert average_incremental_accuracy(stream) == pytest.approx((0.9 + 0.75 + 0.8) / 3)


def test_unequal_test_sizes_pool_samples(stream):
    # after task 2: (70 + 240) of 400; after task 3: (60 + 255 + 570) of 1000
    expected = (0.9 + 0.775 + 0.885) / 3
    assert average_incremental_accuracy(stream, [100, 300, 600]) == pytest.approx(expected)
    metrics = compute_metrics(stream, [100, 300, 600])
    assert metrics["average_incremental_accuracy"] == pytest.approx(expected)
    assert metrics["average_accuracy"] == pytest.approx(0.8)  # a mean over tasks, not over samples


def test_forgetting_counts_from_the_best_and_transfer_from_the_diagonal():
    R = np.array([[0.1, 0.1, 0.1], [0.5, NAN, NAN], [0.9, 0.8, NAN], [0.4, 0.6, 0.7]])
    assert average_forgetting(R) == pytest.approx(((0.9 - 0.4) + (0.8 - 0.6)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.4 - 0.5) + (0.6 - 0.8)) / 2)


def test_forgetting_is_the_same_whatever_was_evaluated():
    """Task 2 was at 0.9 before it was trained on: that row counts for none of `evaluate_on`."""
    everything = np.array([[1.0, 1.0, 1.0], [0.5, 0.9, 0.1], [0.5, 0.8, 0.1], [0.5, 0.6, 0.7]])
    seen_and_next, seen = everything.copy(), everything.copy()
    seen_and_next[1, 2] = NAN
    seen[0] = seen[1, 1:] = seen[2, 2] = NAN
    for R in (everything, seen_and_next, seen):
        assert average_forgetting(R) == pytest.approx(((0.5 - 0.5) + (0.8 - 0.6)) / 2)


def test_forgetting_ignores_the_last_row_when_it_looks_for_the_best():
    R = np.array([[0.1, 0.1], [0.5, NAN], [0.7, 0.9]])
    assert average_forgetting(R) == pytest.approx(-0.2)  # negative: the old task improved
    assert backward_transfer(R) == pytest.approx(0.2)


def test_forgetting_over_all_rows_counts_a_task_that_is_best_at_the_end_as_0():
    """Task 1: 0.9 - 0.8. Task 2: best at the end; its 0.95 before training does not count."""
    R = np.array([[0.1, 0.1, 0.1], [0.9, 0.95, 0.1], [0.7, 0.5, 0.1], [0.8, 0.6, 0.9]])
    assert average_forgetting_over_all(R) == pytest.approx((0.1 + 0.0) / 2)
    assert average_forgetting(R) == pytest.approx((0.1 - 0.1) / 2)
    R[2, 0] = np.nan
    assert average_forgetting_over_all(R) is None
    assert average_forgetting_over_all(R[:2, :1]) is None  # one task


def test_one_task_has_no_forgetting_and_no_transfer():
    metrics = compute_metrics(np.array([[0.1], [0.8]]))
    assert metrics == {
        "average_accuracy": pytest.approx(0.8),
        "average_forgetting": None,
        "backward_transfer": None,
        "forward_transfer": None,
        "learning_accuracy": pytest.approx(0.8),
        "average_incremental_accuracy": pytest.approx(0.8),
    }


@pytest.mark.parametrize(
    ("entry", "undefined"),
    [
        ((3, 2), {"average_accuracy", "learning_accuracy", "average_incremental_accuracy"}),
        (
            (3, 0),
            {
                "average_accuracy",
                "average_forgetting",
                "backward_transfer",
                "average_incremental_accuracy",
            },
        ),
        ((2, 0), {"average_forgetting", "average_incremental_accuracy"}),
        (
            (1, 0),
            {
                "average_forgetting",
                "backward_transfer",
                "learning_accuracy",
                "average_incremental_accuracy",
            },
        ),
        ((1, 1), {"forward_transfer"}),
        ((0, 2), {"forward_transfer"}),
        ((0, 0), set()),
    ],
)
def test_a_missing_entry_undefines_exactly_the_metrics_that_need_it(stream, entry, undefined):
    stream[entry] = NAN
    metrics = compute_metrics(stream)
    assert {name for name, value in metrics.items() if value is None} == undefined


def test_nothing_measured():
    assert compute_metrics(np.full((4, 3), NAN)) == dict.fromkeys(NAMES)


def test_task_aware_metrics_have_names_of_their_own(stream):
    aware = np.minimum(stream + 0.05, 1.0)
    metrics = run_metrics(stream, aware, [1, 1, 1])
    assert list(metrics) == NAMES + [f"{name}_task_aware" for name in NAMES]
    assert metrics["average_accuracy"] == pytest.approx(0.8)
    assert metrics["average_accuracy_task_aware"] == pytest.approx(0.85)
    assert list(run_metrics(stream)) == NAMES


def test_forward_transfer_in_scenario_class_is_that_with_the_task_given_alone():
    """Classes to come are never predicted: minus row 0 would be every method's."""
    R = np.array([[0.1, 0.3], [0.9, 0.0], [0.7, 0.8]])
    aware = np.array([[0.5, 0.5], [0.9, 0.6], [0.8, 0.9]])
    metrics = run_metrics(R, aware)
    assert metrics["forward_transfer"] is None
    assert metrics["forward_transfer_task_aware"] == pytest.approx(0.1)
    assert run_metrics(R)["forward_transfer"] == pytest.approx(-0.3)  # any other scenario


@pytest.mark.parametrize("shape", [(3, 3), (1, 0), (4,)])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match="accuracy matrix"):
        compute_metrics(np.zeros(shape))


def test_wrong_number_of_test_sizes_is_refused(stream):
    with pytest.raises(ValueError, match="test_sizes"):
        average_incremental_accuracy(stream, [1, 2])


def test_evaluation_sizes_ask_for_the_split_that_is_measured():
    class Benchmark:
        num_tasks = 3
        evaluation_split = "validation"

        def task_size(self, t, split):
            return {"validation": 10 * t, "test": 7}[split]

    assert evaluation_sizes(Benchmark()) == [10, 20, 30]


@st.composite
def matrices(draw) -> np.ndarray:
    tasks = draw(st.integers(2, 6))
    fractions = st.floats(0, 1, allow_nan=False)
    return draw(arrays(np.float64, (tasks + 1, tasks), elements=fractions))


@pytest.mark.ci
@given(matrices())
def test_bounds(R):
    metrics = compute_metrics(R)
    for name in ("average_accuracy", "learning_accuracy", "average_incremental_accuracy"):
        assert -1e-12 <= metrics[name] <= 1 + 1e-12
    for name in ("average_forgetting", "backward_transfer", "forward_transfer"):
        assert -1 - 1e-12 <= metrics[name] <= 1 + 1e-12
    # the best accuracy is at least the one right after learning
    assert metrics["average_forgetting"] >= -metrics["backward_transfer"] - 1e-12


@given(matrices())
def test_learning_accuracy_plus_backward_transfer_is_average_accuracy(R):
    tasks = R.shape[1]
    total = learning_accuracy(R) + backward_transfer(R) * (tasks - 1) / tasks
    assert average_accuracy(R) == pytest.approx(total, abs=1e-9)


@pytest.mark.ci
@given(matrices(), st.integers(1, 1000))
def test_equal_test_sizes_change_nothing(R, size):
    sizes = [size] * R.shape[1]
    plain = average_incremental_accuracy(R)
    assert average_incremental_accuracy(R, sizes) == pytest.approx(plain)

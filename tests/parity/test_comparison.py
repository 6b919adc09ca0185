"""The comparison behind the parity tests rejects what it should, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from comparison import assert_same_arrays, assert_same_matrices, assert_same_run
from experiments import Trace, shared_run

TOLERANCE = 1e-5


@dataclass
class FixedLogits:
    """The model of a row of the accuracy matrix, with known logits."""

    values: np.ndarray

    def logits(self, algorithm: object, task: int) -> np.ndarray:
        return self.values


def trace(logits: list[list[float]], labels: list[int]) -> Trace:
    """Return a run of one task, with one measured entry."""
    values = np.array(logits, np.float32)
    accuracy = (values.argmax(1) == labels).mean()
    matrix = np.array([[np.nan], [accuracy]])
    none = np.zeros(0, np.float32)
    return Trace(None, none, none, [], {}, matrix, {1: FixedLogits(values)})


def test_a_prediction_may_flip_only_within_the_tolerance():
    tied = [trace([[1.0, 1.0 + d], [0.0, 1.0]], [0, 1]) for d in (-1e-6, 1e-6)]
    assert tied[0].matrix[1, 0] == 1.0 and tied[1].matrix[1, 0] == 0.5
    assert_same_matrices(*tied, TOLERANCE)
    clear = [trace([[1.0, 1.0 + d], [0.0, 1.0]], [0, 1]) for d in (-1e-3, 1e-3)]
    with pytest.raises(AssertionError, match="logits of task 1 in row 1"):
        assert_same_matrices(*clear, TOLERANCE)


def test_accuracies_that_logits_do_not_explain_are_refused():
    """With equal logits, different accuracies mean that one was counted wrongly."""
    right = trace([[1.0, 2.0], [0.0, 1.0]], [1, 1])
    wrong = replace(right, matrix=np.array([[np.nan], [0.5]]))
    with pytest.raises(AssertionError, match=r"R\[1, 0\] differs by more"):
        assert_same_matrices(wrong, right, TOLERANCE)
    unmeasured = replace(right, matrix=np.full((2, 1), np.nan))
    with pytest.raises(AssertionError, match="what was measured differs"):
        assert_same_matrices(unmeasured, right, TOLERANCE)


def test_names_shapes_and_dtypes_must_agree():
    here = {"params/w": np.ones(3, np.float32)}
    assert_same_arrays(here, {"params/w": np.float32([1, 1, 1 + 1e-6])}, TOLERANCE)
    for other in (
        {},
        {"params/v": here["params/w"]},
        here | {"state/extra": here["params/w"]},
        {"params/w": np.ones((3, 1), np.float32)},
        {"params/w": np.ones(3)},
        {"params/w": np.float32([1, 1, 1.001])},
        {"params/w": np.float32([1, 1, np.nan])},
    ):
        with pytest.raises(AssertionError):
            assert_same_arrays(here, other, TOLERANCE)


@pytest.mark.ci
@pytest.mark.parametrize("number", [0, 20, -1])
def test_one_number_in_one_field_of_one_step_is_enough(number: int):
    """A run is compared with itself after one element of one step has been changed."""
    whole = shared_run("ewc", "torch", stepped=True)
    assert_same_run(whole, whole, 0.0)
    for name in whole.steps[number]:
        moved = {n: a.copy() for n, a in whole.steps[number].items()}
        moved[name].flat[-1] += 1e-3
        steps = list(whole.steps)
        steps[number] = moved
        with pytest.raises(AssertionError, match=name):
            assert_same_run(replace(whole, steps=steps), whole, TOLERANCE)

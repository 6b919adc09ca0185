"""Say whether two runs of one experiment agree, and where they do not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from experiments import Trace

FLOAT32_ROUNDOFF = 2.0**-24


def assert_same_run(actual: Trace, desired: Trace, tolerance: float) -> None:
    """Raise AssertionError unless two runs agree in everything that was recorded of both.

    Args:
        actual, desired: the runs; stepped through or not.
        tolerance: on every number, absolute plus relative; an accuracy must be equal unless a
            sample's two largest logits are within it.
    """
    assert_close("loss of every step", actual.losses, desired.losses, tolerance)
    if actual.steps and desired.steps:
        assert len(actual.steps) == len(desired.steps)
        for number, (a, b) in enumerate(zip(actual.steps, desired.steps, strict=True)):
            assert_same_arrays(a, b, tolerance, f"step {number}: ")
    assert_same_arrays(actual.arrays, desired.arrays, tolerance, "at the end: ")
    assert_same_matrices(actual, desired, tolerance)


def assert_same_arrays(
    actual: Mapping[str, np.ndarray],
    desired: Mapping[str, np.ndarray],
    tolerance: float,
    where: str = "",
) -> None:
    """Raise AssertionError unless names, shapes, dtypes and values agree."""
    assert sorted(actual) == sorted(desired), f"{where}names differ"
    for name in desired:
        a, b = actual[name], desired[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{where}{name} is {a.dtype} {a.shape}"
        assert_close(f"{where}{name}", a, b, tolerance)


def assert_close(name: str, actual: np.ndarray, desired: np.ndarray, tolerance: float) -> None:
    """Raise AssertionError, naming the array, unless |a - d| <= tolerance (1 + |d|)."""
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance, err_msg=name)


def assert_same_matrices(actual: Trace, desired: Trace, tolerance: float) -> None:
    """Raise AssertionError unless accuracies agree, but for samples whose margin is rounding."""
    a, b = actual.matrix, desired.matrix
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b), "what was measured differs")
    for row, column in np.argwhere((a != b) & ~np.isnan(a)):
        x, y = (trace.rows[row].logits(trace.algorithm, column + 1) for trace in (actual, desired))
        assert_close(f"logits of task {column + 1} in row {row}", x, y, tolerance)
        largest = np.sort(y, axis=1)[:, -2:]
        close = largest[:, 1] - largest[:, 0] <= 2 * tolerance * (1 + np.abs(largest[:, 1]))
        flips = x.argmax(1) != y.argmax(1)
        assert not (flips & ~close).any(), f"R[{row}, {column}]: a clear prediction differs"
        difference = round(abs(a[row, column] - b[row, column]) * len(x))
        assert difference <= flips.sum(), f"R[{row}, {column}] differs by more than what flipped"

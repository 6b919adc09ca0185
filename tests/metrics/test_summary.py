"""Mean, standard deviation and intervals over seeds, and quantiles from published tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seqrun.evaluation.metrics import mean_matrix, student_t_quantile, summarise


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706205), (2, 4.302653), (4, 2.776445), (9, 2.262157), (29, 2.045230)],
)
def test_t_quantiles_of_the_tables(degrees, quantile):
    assert student_t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-6)


def test_three_seeds():
    summary = summarise([{"a": 1.0}, {"a": 2.0}, {"a": 3.0}])["a"]
    half = 4.302653 / math.sqrt(3)
    assert summary["mean"] == 2.0
    assert summary["std"] == 1.0  # ddof = 1; the population's would be 0.816
    assert summary["ci95"] == [pytest.approx(2 - half), pytest.approx(2 + half)]
    assert summary["n"] == 3


def test_one_seed_has_no_spread():
    assert summarise([{"a": 0.5}]) == {"a": {"mean": 0.5, "std": None, "ci95": None, "n": 1}}


def test_equal_values_have_an_interval_of_no_width():
    summary = summarise([{"a": 0.5}, {"a": 0.5}])["a"]
    assert (summary["std"], summary["ci95"]) == (0.0, [0.5, 0.5])


def test_undefined_values_are_left_out():
    summary = summarise([{"a": None, "b": 1.0}, {"a": None, "b": None}, {"a": None, "b": 3.0}])
    assert summary["a"] == {"mean": None, "std": None, "ci95": None, "n": 0}
    assert (summary["b"]["mean"], summary["b"]["n"]) == (2.0, 2)


def test_metrics_of_some_seeds_only():
    summary = summarise([{"a": 1.0}, {"a": 2.0, "b": 5.0}])
    assert list(summary) == ["a", "b"]
    assert summary["b"]["n"] == 1


def test_no_seeds():
    assert summarise([]) == {}


def test_mean_matrix_counts_only_what_was_measured():
    a = np.array([[0.2, np.nan], [0.4, np.nan], [0.5, 0.5]])
    b = np.array([[0.4, 0.6], [np.nan, np.nan], [0.7, 0.9]])
    expected = np.array([[0.3, 0.6], [0.4, np.nan], [0.6, 0.7]])
    np.testing.assert_allclose(mean_matrix([a, b]), expected)

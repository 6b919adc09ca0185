"""The verdict: its rule by hand, and what `expected` may hold."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import ttest_ind_from_stats

from seqrun.checks import ConfigError
from seqrun.evaluation.verdict import (
    Expected,
    Number,
    Sample,
    compare,
    judge,
    protocol_changes,
    seeds_needed,
    tells_apart,
    worst,
)
from seqrun.loggers.console import show_verdict

NODE: dict[str, Any] = {
    "paper": "Someone 2020",
    "table": "Table 1",
    "source": "the authors' repository",
    "status": "confirmed",
    "metrics": {"average_accuracy": {"mean": 0.5, "std": 0.02}},
}


NAMES = ("average_accuracy_task_aware", "average_forgetting")


@dataclass
class Run:
    """What a verdict reads of a RunRecord."""

    accuracy_matrix: np.ndarray
    accuracy_matrix_task_aware: np.ndarray | None = None
    test_sizes: list[int] | None = None


def runs(*accuracies: float) -> list[Run]:
    """Return runs of one task with these final accuracies."""
    return [Run(np.array([[0.1], [accuracy]])) for accuracy in accuracies]


TEN = {**NODE, "num_seeds": 10}
"""0.5 +- 0.02 over ten runs: the band is 0.04, the published mean's own error 0.0063."""


@pytest.mark.parametrize(
    ("accuracies", "verdict", "seeds"),
    [
        ((0.50, 0.51, 0.52), "reproduced", None),
        ((0.50, 0.52, 0.54), "inconclusive", 9),  # half the interval: 0.0404; of nine seeds 0.0194
        ((0.52, 0.53, 0.54), "inconclusive", "none"),  # it never gets below that of theirs, 0.0143
        ((0.56, 0.57, 0.58), "above", None),
        ((0.42, 0.43, 0.44), "below", None),
        ((0.53, 0.54, 0.55), "inconclusive", "none"),  # on the band's edge
        ((0.5,), "inconclusive", None),  # one seed has no interval
    ],
)
def test_by_the_interval_of_the_difference(accuracies: tuple[float, ...], verdict: str, seeds: Any):
    """Within the band, wholly outside, or neither."""
    found = judge(Expected.of(TEN), runs(*accuracies), measured_on="test")
    assert found["verdict"] == verdict
    comparison = found["metrics"]["average_accuracy"]
    assert math.isclose(comparison["band"], 0.04)
    assert math.isclose(comparison["difference"], np.mean(accuracies) - 0.5, abs_tol=1e-12)
    assert comparison["seeds"] == len(accuracies)
    assert comparison["seeds_that_decide"] == seeds


@given(st.integers(2, 30), st.integers(2, 30), st.floats(1e-3, 0.2), st.floats(1e-3, 0.2))
def test_the_interval_is_welchs(n: int, num_runs: int, std: float, published: float):
    """Where the difference is at its end, SciPy's test of unequal variances has p = 0.05."""
    number = Number(mean=0.5, std=published)
    found = compare(number, num_runs, Sample(0.6, std, n))
    half = found["difference_half_width"]
    told = ttest_ind_from_stats(half, std, n, 0.0, published, num_runs, equal_var=False)
    assert math.isclose(told.pvalue, 0.05, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("number", "num_runs", "half", "band", "deviation"),
    [
        # t(0.975, 4) = 2.776445; ours: 0.05 over five seeds
        ({"std": 0.03}, None, 2.776445 * math.sqrt(0.0025 / 5 + 0.0009), 0.06, "published"),
        ({}, 1, 2.776445 * 0.05 * math.sqrt(1 + 1 / 5), 0.1, "ours"),
        ({}, None, 2.776445 * 0.05 * math.sqrt(1 + 1 / 5), 0.1, "ours"),
        ({}, 10, 2.776445 * 0.05 * math.sqrt(1 / 10 + 1 / 5), 0.1, "ours"),
        ({"std": 0.03, "tolerance": 0.02}, 10, 2.776445 * 0.05 / math.sqrt(5), 0.02, "none"),
        ({"tolerance": 0.02}, 1, 2.776445 * 0.05 / math.sqrt(5), 0.02, "none"),
    ],
)
def test_what_is_not_known(number, num_runs, half, band, deviation):
    """No number of runs: one; no deviation: ours; a sourced tolerance: an exact number."""
    found = compare(Number(mean=0.5, **number), num_runs, Sample(0.5, 0.05, 5))
    assert math.isclose(found["difference_half_width"], half, rel_tol=1e-6)
    assert math.isclose(found["band"], band) and found["deviation_of"] == deviation


def test_seeds_that_would_decide_are_the_fewest():
    """One seed less leaves it open; none helps where the published mean is too uncertain."""
    number, ours = Number(mean=0.5, std=0.02), Sample(0.52, 0.04, 5)
    seeds = compare(number, 10, ours)["seeds_that_decide"]
    assert compare(number, 10, ours._replace(n=seeds))["verdict"] == "reproduced"
    assert compare(number, 10, ours._replace(n=seeds - 1))["verdict"] == "inconclusive"
    assert compare(number, 1, ours)["seeds_that_decide"] == "none"


@pytest.mark.parametrize(
    ("verdicts", "row"),
    [
        (("reproduced", "inconclusive", "reproduced"), "inconclusive"),
        (("inconclusive", "below", "reproduced"), "below"),
        (("above", "inconclusive"), "above"),
        (("reproduced",), "reproduced"),
    ],
)
def test_a_row_is_as_good_as_its_worst_metric(verdicts, row):
    assert worst(verdicts) == row


@pytest.mark.parametrize(
    ("control", "told"),
    [
        (Sample(0.30, 0.02, 5), True),  # far outside
        (Sample(0.48, 0.02, 5), False),  # it would be reproduced itself
        (Sample(0.44, 0.02, 5), False),  # outside, but its interval is not
        (Sample(0.30, None, 1), None),
        (Sample(None, None, 0), None),
    ],
)
def test_power_is_the_control_outside_the_band(control: Sample, told: bool | None):
    """Band 0.04; the control's half interval is about 0.02."""
    ours = Sample(0.5, 0.02, 5)
    assert tells_apart(Number(mean=0.5, std=0.02), 10, ours, control) is told


def test_the_band_of_the_control_is_the_methods():
    """A control that scatters widely gets no wider band where no deviation was published."""
    ours, control = Sample(0.5, 0.01, 5), Sample(0.1, 0.1, 5)
    half = 2.776445 * math.sqrt(0.1**2 / 5 + 0.01**2 / 3)
    at_the_end = control._replace(mean=0.5 - 0.02 - half - 1e-6)
    assert tells_apart(Number(mean=0.5), 3, ours, at_the_end) is True
    assert tells_apart(Number(mean=0.5), 3, ours, at_the_end._replace(mean=0.5 - half)) is False


@pytest.mark.parametrize(
    ("step", "needed"),
    [
        (0.0, 5),
        (0.001, 5),
        (0.0175, 10),  # s = 0.0277; 2.262 s / sqrt(10) = 0.0198, 2.306 s / sqrt(9) = 0.0213
        (0.5, 30),  # more would be asked for
    ],
)
@pytest.mark.parametrize("mean", [0.5, 0.9])
def test_seeds_needed_follow_the_first_deviation_alone(step: float, needed: int, mean: float):
    """Half our own interval is to be within half the band, 0.02."""
    values = [mean + step * k for k in (-2, -1, 0, 1, 2)]
    measured = [{"average_accuracy": value} for value in values]
    found = seeds_needed(Expected.of(TEN), measured)
    assert found == needed
    more = [{"average_accuracy": 0.0}, {"average_accuracy": 1.0}]
    assert seeds_needed(Expected.of(TEN), measured + more) == needed


def test_the_half_width_is_students():
    """t(0.975, 2) = 4.3027 times s / sqrt(3), by hand."""
    found = judge(Expected.of(NODE), runs(0.49, 0.50, 0.51), measured_on="test")
    half_width = found["metrics"]["average_accuracy"]["half_width"]
    assert math.isclose(half_width, 4.302653 * 0.01 / math.sqrt(3), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("number", "band"),
    [
        ({"mean": 0.5}, 0.01),
        ({"mean": 0.5, "std": 0.001}, 0.01),
        ({"mean": 0.5, "std": 0.03}, 0.06),
        ({"mean": 0.5, "std": 0.03, "tolerance": 0.02}, 0.02),
    ],
)
def test_band(number: dict[str, float], band: float):
    """max(2 published std, 1 point), unless the row says otherwise."""
    expected = Expected.of({**NODE, "metrics": {"average_accuracy": number}})
    assert math.isclose(expected.metrics["average_accuracy"].band(0.004), band)


def test_weighs_by_test_sizes():
    """(0.9 + (0.5 * 100 + 0.9 * 300) / 400) / 2 = 0.85: tasks are not alike."""
    matrix = np.array([[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]])
    node = {**NODE, "metrics": {"average_incremental_accuracy": {"mean": 0.85}}}
    found = judge(Expected.of(node), [Run(matrix, None, [100, 300])] * 2, measured_on="test")
    assert math.isclose(found["metrics"]["average_incremental_accuracy"]["mean"], 0.85)


def test_a_papers_own_metric():
    """Backward transfer over all tasks, the last counting 0: (0.6 - 0.8 + 0) / 2."""
    matrix = np.array([[0.1, 0.1], [0.8, 0.1], [0.6, 0.9]])
    node = {**NODE, "metrics": {"backward_transfer_over_all": {"mean": -0.1}}}
    found = judge(Expected.of(node), [Run(matrix), Run(matrix)], measured_on="test")
    assert math.isclose(found["metrics"]["backward_transfer_over_all"]["mean"], -0.1)
    assert found["verdict"] == "reproduced"


def test_task_aware_metrics_are_of_their_own_matrix():
    """Class-incremental and task-aware numbers of one run, each compared."""
    metrics = {"average_accuracy": {"mean": 0.2}, "average_accuracy_task_aware": {"mean": 0.9}}
    both = [Run(np.array([[0.1], [0.2]]), np.array([[0.5], [0.95]])) for _ in range(2)]
    found = judge(Expected.of({**NODE, "metrics": metrics}), both, measured_on="test")
    assert found["verdict"] == "above"
    assert found["metrics"]["average_accuracy"]["verdict"] == "reproduced"
    assert found["metrics"]["average_accuracy_task_aware"]["verdict"] == "above"


def test_a_metric_that_was_not_measured_is_inconclusive():
    """Forgetting of one task is undefined."""
    node = {**NODE, "metrics": {"average_forgetting": {"mean": 0.1}}}
    assert judge(Expected.of(node), runs(0.5, 0.5), measured_on="test")["verdict"] == "inconclusive"


def test_changes_of_the_protocol_are_told():
    """Where and on what a reproduction runs is free; anything else is a change."""
    free = ["reproductions=a/b", "backend=jax", "hydra.run.dir=x", "logger=local", "resume=never"]
    free.append("seed=[0,1,2,3,4,5]")  # more seeds measure the same row better
    changes = ["training.lr_min=0.1", "+training.grad_clip=1", "algo=ewc"]
    assert protocol_changes([*free, *changes]) == changes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "sure"}, "expected.status='sure': must be one of confirmed"),
        ({"machine": "tpu"}, "expected.machine='tpu': must be one of cpu"),
        ({"paper": ""}, "expected.paper='': must be text"),
        ({"num_seeds": 0}, "expected.num_seeds=0: must be an integer >= 1"),
        ({"control": 3}, "expected.control=3: must be <paper>/<row>, naive or a list"),
        ({"minutes": 0}, "expected.minutes=0: must be a number > 0"),
        ({"papr": "x"}, "expected.papr: no such key; .*did you mean paper"),
        ({"metrics": {}}, "expected.metrics={}: must be a node of metrics"),
        ({"metrics": {"acc": {"mean": 0.5}}}, "expected.metrics.acc: no such metric"),
        (
            {"metrics": {"average_accuracy": {"std": 0.1}}},
            "expected.metrics.average_accuracy.mean: must be given",
        ),
        (
            {"metrics": {"average_accuracy": {"mean": 46.3}}},
            r"expected.metrics.average_accuracy.mean=46.3: must be a number in \[-1, 1\]",
        ),
        (
            {"metrics": {"average_accuracy": {"mean": 0.4, "std": -1}}},
            "expected.metrics.average_accuracy.std=-1: must be a number >= 0",
        ),
        (
            {"metrics": {"average_accuracy": {"mean": 0.4, "tolerance": 0}}},
            "expected.metrics.average_accuracy.tolerance=0: must be a number > 0",
        ),
    ],
)
def test_refuses(change: dict[str, Any], said: str):
    """One message each."""
    with pytest.raises(ConfigError, match=said):
        Expected.of({**NODE, **change})


def test_needs_every_key():
    """Where a number comes from is part of it."""
    for key in NODE:
        node = {k: v for k, v in NODE.items() if k != key}
        with pytest.raises(ConfigError, match=f"expected.{key}: must be given"):
            Expected.of(node)


def test_it_is_shown_whole_in_a_terminal():
    """80 columns: long names take two lines, and neither numbers nor verdicts are cut."""
    metrics = {name: {"mean": 0.5} for name in NAMES}
    expected = Expected.of({**NODE, "metrics": metrics})
    aware = np.array([[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]])
    measured = [Run(aware + shift, aware + shift) for shift in (0.0, 0.01, 0.09)]
    verdict = judge(expected, measured, measured_on="test")
    told = io.StringIO()
    show_verdict(SimpleNamespace(verdict=verdict), Console(file=told, width=80))
    assert "…" not in told.getvalue()
    assert told.getvalue().count("inconclusive") == 1, "the first metric's"
    assert told.getvalue().count("below") == 2, "the second's, which is the row's"
    assert "73.3 ± 12.3       +23.3     9.9  inconclusive" in told.getvalue()

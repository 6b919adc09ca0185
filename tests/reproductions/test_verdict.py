"""The verdict: its rule by hand, and what `expected` may hold."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from seqrun.checks import ConfigError
from seqrun.evaluation.verdict import Expected, judge, protocol_changes
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


def runs(*accuracies: float) -> list[Run]:
    """Return runs of one task with these final accuracies."""
    return [Run(np.array([[0.1], [accuracy]])) for accuracy in accuracies]


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((0.53, 0.535, 0.54), "reproduced"),  # 0.035 is within 2 std = 0.04
        ((0.54, 0.54, 0.54), "reproduced"),  # as far as it may be: 0.54 - 0.5 > 0.04 in floats
        ((0.46, 0.46, 0.46), "reproduced"),
        ((0.545, 0.546, 0.547), "above"),
        ((0.44, 0.45, 0.46), "below"),
        ((0.47, 0.50, 0.53), "inconclusive"),  # half width 4.303 * 0.03 / sqrt(3) = 0.075
        ((0.5,), "inconclusive"),  # one seed has no interval
        ((0.50, 0.505), "reproduced"),  # 12.706 * 0.0035 / sqrt(2) = 0.032
        ((0.50, 0.507), "inconclusive"),  # 12.706 * 0.0049 / sqrt(2) = 0.044
    ],
)
def test_by_the_first_metric(accuracies: tuple[float, ...], verdict: str):
    """Half width above the tolerance: inconclusive; else by the difference, both sides."""
    found = judge(Expected.of(NODE), runs(*accuracies), measured_on="test")
    assert found["verdict"] == verdict
    comparison = found["metrics"]["average_accuracy"]
    assert math.isclose(comparison["tolerance"], 0.04)
    assert math.isclose(comparison["difference"], np.mean(accuracies) - 0.5, abs_tol=1e-12)
    assert comparison["seeds"] == len(accuracies)


def test_the_half_width_is_students():
    """t(0.975, 2) = 4.3027 times s / sqrt(3), by hand."""
    found = judge(Expected.of(NODE), runs(0.49, 0.50, 0.51), measured_on="test")
    half_width = found["metrics"]["average_accuracy"]["half_width"]
    assert math.isclose(half_width, 4.302653 * 0.01 / math.sqrt(3), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("number", "tolerance"),
    [
        ({"mean": 0.5}, 0.01),
        ({"mean": 0.5, "std": 0.001}, 0.01),
        ({"mean": 0.5, "std": 0.03}, 0.06),
        ({"mean": 0.5, "std": 0.03, "tolerance": 0.02}, 0.02),
    ],
)
def test_tolerance(number: dict[str, float], tolerance: float):
    """max(2 published std, 1 point), unless the row says otherwise."""
    expected = Expected.of({**NODE, "metrics": {"average_accuracy": number}})
    assert math.isclose(expected.metrics["average_accuracy"].largest_difference, tolerance)


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
    assert found["verdict"] == "reproduced"
    assert found["metrics"]["average_accuracy_task_aware"]["verdict"] == "above"


def test_a_metric_that_was_not_measured_is_inconclusive():
    """Forgetting of one task is undefined."""
    node = {**NODE, "metrics": {"average_forgetting": {"mean": 0.1}}}
    assert judge(Expected.of(node), runs(0.5, 0.5), measured_on="test")["verdict"] == "inconclusive"


def test_changes_of_the_protocol_are_told():
    """Where and on what a reproduction runs is free; anything else is a change."""
    free = ["reproductions=a/b", "backend=jax", "hydra.run.dir=x", "logger=local", "resume=never"]
    free += ["++device=cpu", "+hydra.verbose=true", "~logger.console"]  # however it is written
    changes = ["seed=1", "training.lr_min=0.1", "+training.grad_clip=1", "algo=ewc"]
    assert protocol_changes([*free, *changes]) == changes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "sure"}, "expected.status='sure': must be one of confirmed"),
        ({"machine": "tpu"}, "expected.machine='tpu': must be one of cpu"),
        ({"paper": ""}, "expected.paper='': must be text"),
        ({"num_seeds": 0}, "expected.num_seeds=0: must be an integer >= 1"),
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
    assert "…" not in told.getvalue() and told.getvalue().count("inconclusive") == 2

"""SI: the path integral and the importance by hand, and every option."""

from __future__ import annotations

import numpy as np
import pytest
from algorithms.penalty_by_hand import KERNEL, Arrays, TaskEnd, assert_as_by_hand, by_hand
from algorithms.side_effects import assert_differs_from_naive, assert_reduces_to_naive, jax_in_full
from experiments import build, every_backend, shared_run

from seqrun.checks import ConfigError

PLAIN = {"lr": 0.2}
# Momentum carries parameters uphill, and a clipped step is not lr times the gradient.
CLIPPED = {"lr": 4.0, "momentum": 0.98, "grad_clip": 0.2}


def rule(xi: float, clip: str):
    """Return Omega <- Omega + omega / (Delta^2 + xi), clipped."""

    def importance(end: TaskEnd) -> Arrays:
        total = {}
        for n, path in end.path.items():
            new = path / ((end.w[n] - end.start[n]) ** 2 + xi)
            new = np.maximum(new, 0) if clip == "increment" else new
            total[n] = end.past[n] + new
            total[n] = np.maximum(total[n], 0) if clip == "total" else total[n]
        return total

    return importance


@pytest.mark.parametrize(
    ("backend", "clip", "setting"),
    [
        ("torch", "total", PLAIN),
        ("torch", "total", CLIPPED),
        ("torch", "increment", CLIPPED),
        ("torch", "none", CLIPPED),
        pytest.param("jax", "total", PLAIN, marks=pytest.mark.full),
        pytest.param("jax", "total", CLIPPED, marks=pytest.mark.full),
        pytest.param("jax", "increment", CLIPPED, marks=pytest.mark.full),
        pytest.param("jax", "none", CLIPPED, marks=pytest.mark.full),
    ],
)
def test_every_step_is_as_by_hand(backend: str, clip: str, setting: dict):
    """The path integral uses the gradient of the task loss, unclipped and without the penalty.

    It detects an omega that stays 0, and an anchor that moves before Delta is computed.
    """
    options = {"si_lambda": 0.6, "xi": 0.05, "clip": clip, "penalty_scale": 0.5}
    result = assert_as_by_hand(rule(0.05, clip), 0.3, "si", backend, setting=setting, **options)
    assert all(any((path != 0).any() for path in step.values()) for step in result.paths)


def test_the_cases_distinguish_the_clips():
    """By hand: some importance is negative after a task, and some of a task's contributions are."""
    none, total, increment = (
        by_hand(rule(0.05, clip), 0.3, **CLIPPED) for clip in ("none", "total", "increment")
    )
    assert min(omega.min() for after in none.importance for omega in after.values()) < -0.01
    for clipped in (total, increment):
        assert min(omega.min() for after in clipped.importance for omega in after.values()) >= 0
        assert abs(clipped.steps[-1][KERNEL] - none.steps[-1][KERNEL]).max() > 0.01
    assert abs(total.steps[-1][KERNEL] - increment.steps[-1][KERNEL]).max() > 0.01


def test_one_step_in_numbers():
    """g = 2 and delta = -0.1 twice: omega = 0.4, Delta = -0.2, Omega = 0.4 / (0.04 + 0.1)."""
    path = {"w": np.array([-2 * -0.1 - 2 * -0.1])}
    w, start, past = ({"w": np.array([value])} for value in (0.8, 1.0, 0.0))
    end = TaskEnd(w, start, path, past, np.empty(0), np.empty(0))
    np.testing.assert_allclose(rule(0.1, "total")(end)["w"], 2.857142857)


@jax_in_full
def test_importance_is_positive_and_grows(backend: str):
    """Nowhere negative, with a positive sum that grows with the tasks, and not constant."""
    steps = shared_run("si", backend, stepped=True).steps
    per_task = len(steps) // 3
    prefix = "state/importance/"
    totals = []
    for step in (steps[0], steps[per_task], steps[2 * per_task]):
        values = np.concatenate([a.ravel() for n, a in step.items() if n.startswith(prefix)])
        assert values.min() >= 0
        totals.append(values.sum())
    assert totals[0] == 0 < totals[1] < totals[2]
    assert values.std() > 0


@pytest.mark.ci
@jax_in_full
def test_reduces_to_naive(backend: str):
    """si_lambda = 0 is naive; another value is not, from task 2 on."""
    assert_reduces_to_naive("si", backend, si_lambda=0.0)
    assert_differs_from_naive("si", si_lambda=5.0)


@pytest.mark.parametrize("option", [{"xi": 1.0}, {"si_lambda": 0.5}, {"penalty_scale": 0.5}])
def test_options_matter(option: dict):
    """A run with the option differs; `clip` is tested above."""
    spec = {"optimizer_options": {"lr": 0.05, "momentum": 0.9}}
    shipped, changed = (shared_run("si", "torch", **spec, **o) for o in ({}, option))
    name = "params/hidden_0/kernel"
    assert abs(shipped.arrays[name] - changed.arrays[name]).max() > 1e-6


@every_backend
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"xi": 0.0}, r"xi=0.0: must be a number > 0"),
        ({"clip": "totl"}, r"clip='totl': must be one of .*did you mean total"),
        ({"si_lambda": -1.0}, r"si_lambda=-1.0: must be a number >= 0"),
    ],
)
def test_refuses(backend: str, option: dict, message: str):
    """Values out of range."""
    with pytest.raises(ConfigError, match=message):
        build("si", backend, **option)

"""A-GEM: the projection by hand, its memory of past tasks, and its lack of side effects."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from algorithms.replay_by_hand import (
    FIRST_TASK,
    SETTING,
    HandStep,
    PlanRecorder,
    assert_steps_as_by_hand,
    mean_gradient,
    mean_loss,
    tiny_run,
)
from algorithms.side_effects import assert_reduces_to_naive
from comparison import assert_close, assert_same_run
from experiments import BACKENDS, build, every_backend, jax_in_full, run, shared_run

from seqrun.checks import ConfigError

SMALL: dict[str, Any] = {"per_task_memory_samples": 20, "memory_batch_size": 16}
SPEC = SETTING | SMALL  # with clipping, after the projection


def projection(backend: str, g: dict[str, Any], r: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return seqrun's projection of `g` by `r`, in float32."""
    if backend == "torch":
        from torch import as_tensor as array
    else:
        from jax.numpy import asarray as array
    arrays = ({n: array(np.array(v, np.float32)) for n, v in group.items()} for group in (g, r))
    project = import_module(f"seqrun.formulas.projection.{backend}").projected
    return {n: np.asarray(v) for n, v in project(*arrays).items()}


@every_backend
def test_projection_in_numbers(backend: str):
    """For g = (1, 2, 2) and r = (-3, 0, 1), in two arrays: g.r = -1, r.r = 10, result g + r/10."""
    result = projection(backend, {"a": [1], "b": [[2], [2]]}, {"a": [-3], "b": [[0], [1]]})
    np.testing.assert_allclose(result["a"], [0.7], rtol=1e-6)
    np.testing.assert_allclose(result["b"], [[2.0], [2.1]], rtol=1e-6)
    assert result["b"].shape == (2, 1)


@every_backend
@pytest.mark.parametrize(
    "reference",
    [[3.0, 0.5], [2.0, 1.0], [0.0, 0.0], [1e-30, 0.0]],
    ids=["acute", "right", "zero", "vanishing"],
)
def test_an_agreeing_or_zero_reference_changes_no_bit(backend: str, reference: list[float]):
    """With g.r >= 0, with r = 0, and with an r whose square is 0 in float32."""
    g = np.array([0.1, -0.2], np.float32)
    assert np.array_equal(projection(backend, {"a": g}, {"a": reference})["a"], g)


@every_backend
def test_a_vanishing_opposed_reference_is_safe(backend: str):
    """r.r is 0 in float32, but g.r is not."""
    result = projection(backend, {"a": [1.0, 1.0]}, {"a": [-1e-30, 0.0]})["a"]
    assert np.isfinite(result).all()
    assert abs(result - 1).max() < 1e-6


@jax_in_full
def test_every_step_is_as_by_hand(backend: str):
    """In task 2 with all 6 stored samples, fewer than memory_batch_size, in task 3 with 8 of 12."""
    projections = []

    def rule(step: HandStep):
        x, y, _ = step.batches["replay"]
        g = step.gradient
        assert len(y) == {1: 0, 2: 6, 3: 8}[step.task]
        if len(y):
            r = mean_gradient(step.w, x, y)
            product = sum((g[n] * r[n]).sum() for n in g)
            projections.append(product < 0)
            if product < 0:
                scale = product / sum((v**2).sum() for v in r.values())
                g = {n: g[n] - scale * r[n] for n in g}
                assert abs(sum((g[n] * r[n]).sum() for n in g)) < 1e-12
        return mean_loss(step.w, *step.batch), g

    trace = tiny_run("agem", backend, per_task_memory_samples=6, memory_batch_size=8)
    assert_steps_as_by_hand(trace, rule)
    assert 0 < sum(projections) < len(projections)


@jax_in_full
def test_first_task_is_naive(backend: str):
    """To the bit on PyTorch; later tasks differ."""
    naive = shared_run("naive", backend, **SETTING)
    trace = shared_run("agem", backend, **SPEC)
    tolerance = 0.0 if backend == "torch" else 1e-5
    assert_close("losses", trace.losses[FIRST_TASK], naive.losses[FIRST_TASK], tolerance)
    assert abs(trace.losses - naive.losses).max() > 1e-3


@pytest.mark.ci
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_jax_decides_without_computing_the_reference(
    dropout: float, monkeypatch: pytest.MonkeyPatch
):
    """The result is the same; the reference is computed in one branch of the program only."""
    from seqrun.formulas.projection import jax as module

    taken, cond = [], module.jax.lax.cond
    spec = SPEC | {"benchmark": "rotated_digits", "stream": {"samples_per_task": 40}}
    spec["backbone"] = {"dropout": dropout}

    def recorded(opposed: Any, *branches: Any) -> Any:
        module.jax.debug.callback(lambda value: taken.append(bool(value)), opposed)
        return cond(opposed, *branches)

    monkeypatch.setattr(module.jax.lax, "cond", recorded)
    short = run("agem", "jax", **spec)
    assert len(taken) == len(short.losses) - FIRST_TASK.stop
    assert 0 < sum(taken) < len(taken)
    monkeypatch.setattr(module, "trace_layers", lambda *_: None)
    assert_same_run(run("agem", "jax", **spec), short, 1e-5)
    assert len(taken) == len(short.losses) - FIRST_TASK.stop


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["norm", "child"])
def test_jax_always_computes_the_reference_in_other_cases(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    """With BatchNorm, whose statistics have changed by then, and in a subclass."""
    from seqrun.algorithms.agem.jax import AGEM
    from seqrun.formulas.projection import jax as module

    class Child(AGEM):
        """A custom subclass."""

    monkeypatch.setattr(module, "trace_layers", None)
    backbone = {"batch_norm": kind == "norm"}
    run("agem", "jax", backbone=backbone, kind=Child if kind == "child" else None, **SPEC)


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_the_reference_pass_has_no_side_effects(backend: str, monkeypatch: pytest.MonkeyPatch):
    """Without projections the run equals naive in mode and noise, in statistics if asked."""
    module = import_module(f"seqrun.algorithms.agem.{backend}")
    monkeypatch.setattr(module, "projected_by_loss", lambda gradients, *_: gradients)
    monkeypatch.setattr(module, "projected", lambda gradients, *_: gradients)
    without = SMALL | {"reference_updates_statistics": False}
    assert_reduces_to_naive("agem", backend, **without)


@pytest.mark.ci
@every_backend
def test_memory_is_of_past_tasks_and_within_its_budget(backend: str):
    """All replayed samples; 20 samples of each of 5 tasks, with 64 + 4 + 4 bytes each."""
    plan = PlanRecorder()
    algorithm = run("agem", backend, callbacks=[plan], **SPEC).algorithm
    for row, dataset, task in zip(plan.rows, plan.datasets, plan.tasks, strict=True):
        assert len(row["replay"]) == min(16, 20 * (task - 1))
        assert (dataset.t[row["replay"]] < task - 1).all()
    assert np.bincount(algorithm.memory.data.t).tolist() == [20] * 5
    assert algorithm.progress.memory_bytes == 100 * 72


@pytest.mark.parametrize(
    "option",
    [
        {"per_task_memory_samples": 5},
        {"memory_batch_size": 5},
        {"memory_policy": "random"},
        {"memory_policy": "class_balanced"},
    ],
)
def test_options_matter(option: dict):
    """A run with the option differs."""
    shipped, changed = (shared_run("agem", "torch", **SPEC | o) for o in ({}, option))
    assert abs(shipped.losses - changed.losses).max() > 1e-4


@pytest.mark.parametrize("policy", ["random", "class_balanced"])
def test_class_balanced_policy_is_balanced(policy: str):
    """20 samples of 2 classes are 10 of each; at random they are not."""
    data = shared_run("agem", "torch", **SPEC | {"memory_policy": policy}).algorithm.memory.data
    counts = [np.bincount(data.y[data.t == t])[-2:] for t in range(5)]
    assert all((c == 10).all() for c in counts) == (policy == "class_balanced")


@pytest.mark.ci
def test_twins_agree_on_the_options():
    """The loss of every step, and every field of the memory."""
    spec = SPEC | {"memory_policy": "random"}
    by_torch, by_jax = (shared_run("agem", b, **spec) for b in BACKENDS)
    assert {"memory/x", "memory/y", "memory/t"} <= set(by_torch.arrays)
    assert_same_run(by_jax, by_torch, 1e-5)


@every_backend
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"per_task_memory_samples": 0}, "per_task_memory_samples=0: must be an integer >= 1"),
        ({"memory_batch_size": 0}, "memory_batch_size=0: must be an integer >= 1"),
        ({"memory_policy": "reservoir"}, "memory_policy='reservoir': must be one of ring, random"),
        (
            {"reference_updates_statistics": None},
            "reference_updates_statistics=None: must be true or false",
        ),
        (
            {"per_task_memory_samples": 1, "backbone": {"batch_norm": True}},
            "per_task_memory_samples=1: must be at least 2 with a BatchNorm backbone",
        ),
    ],
)
def test_refuses(backend: str, option: dict, message: str):
    """Values out of range, and what BatchNorm cannot normalise."""
    with pytest.raises(ConfigError, match=message):
        build("agem", backend, **option)


@pytest.mark.ci
@every_backend
def test_the_reference_pass_takes_no_noise_of_training(
    backend: str, monkeypatch: pytest.MonkeyPatch
):
    """With dropout and BatchNorm, and nothing projected, parameters are those of naive."""
    module = import_module(f"seqrun.algorithms.agem.{backend}")
    monkeypatch.setattr(module, "projected", lambda gradients, reference: gradients)
    spec = {"backbone": {"batch_norm": True, "dropout": 0.3}}
    agem, naive = (run(algo, backend, **spec).arrays for algo in ("agem", "naive"))
    for name in naive:
        if name.startswith("params/"):
            np.testing.assert_allclose(agem[name], naive[name], rtol=0, atol=1e-6, err_msg=name)
    statistics = [name for name in naive if name.startswith("stats/")]
    assert any(abs(agem[name] - naive[name]).max() > 1e-3 for name in statistics)

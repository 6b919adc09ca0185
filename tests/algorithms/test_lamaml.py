"""La-MAML: both gradients and every step by hand, the planned glances, and every option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from algorithms.replay_by_hand import (
    BIAS,
    KERNEL,
    SETTING,
    PlanRecorder,
    inputs_of,
    mean_gradient,
    mean_loss,
)
from comparison import assert_close, assert_same_arrays
from experiments import (
    LossRecorder,
    StepRecorder,
    algorithm_class,
    build,
    component,
    jax_in_full,
    run,
    shared_run,
)
from tiny import Linear, TinyBenchmark

from seqrun.algorithms.base import TrainingOptions
from seqrun.backbones import draw_initial_weights
from seqrun.checks import ConfigError
from seqrun.training.trainer import Trainer

Arrays = dict[str, np.ndarray]
LR = 0.3
TINY = {
    "memory_size": 4,
    "replay_batch_size": 2,
    "glances": 2,
    "inner_chunk_size": 2,
    "alpha_init": 0.4,
    "lr_alpha": 0.5,
}
SPEC = SETTING | {"memory_size": 60, "glances": 2, "inner_chunk_size": 4, "clip": None}
"""`SETTING` has a clipping of its own."""


# ---- by hand


@dataclass
class Batches:
    """Samples of a step: the batch, and the batch followed by the replayed samples.

    Attributes:
        inner_relu: whether inner steps take relu(alpha).
    """

    x: np.ndarray
    y: np.ndarray
    meta_x: np.ndarray
    meta_y: np.ndarray
    inner_relu: bool


def look_ahead(
    w: Arrays, alpha: Arrays, data: Batches, size: int, given: list[Arrays] | None = None
) -> tuple[float, list[Arrays], list[Arrays]]:
    """Return the meta-loss, the inner gradients g_j, and the parameters after each inner step.

    In first order the inner gradients are constants, `given`.
    """
    losses, inner, after = [], [], []
    rates = {n: np.maximum(a, 0) for n, a in alpha.items()} if data.inner_relu else alpha
    for j, start in enumerate(range(0, len(data.y), size)):
        rows = slice(start, start + size)
        g = given[j] if given else mean_gradient(w, data.x[rows], data.y[rows])
        w = {n: w[n] - rates[n] * g[n] for n in w}
        losses.append(mean_loss(w, data.meta_x, data.meta_y))
        inner.append(g)
        after.append(w)
    return float(np.mean(losses)), inner, after


def closed_form(w: Arrays, alpha: Arrays, data: Batches, size: int) -> tuple[Arrays, Arrays]:
    """Return the first-order gradients with respect to theta and alpha, as in the paper."""
    _, inner, after = look_ahead(w, alpha, data, size)
    outer = [mean_gradient(v, data.meta_x, data.meta_y) for v in after]
    theta = {n: np.mean([g[n] for g in outer], 0) for n in w}
    sums = [{n: sum(g[n] for g in inner[: j + 1]) for n in w} for j in range(len(inner))]
    rates = {n: np.mean([-g[n] * s[n] for g, s in zip(outer, sums, strict=True)], 0) for n in w}
    if data.inner_relu:
        rates = {n: rates[n] * (alpha[n] > 0) for n in w}
    return theta, rates


def differences(
    w: Arrays, alpha: Arrays, data: Batches, size: int, second_order: bool
) -> tuple[Arrays, Arrays]:
    """Return both gradients as central differences of the meta-loss, in float64."""
    given = None if second_order else look_ahead(w, alpha, data, size)[1]
    found: tuple[Arrays, Arrays] = ({}, {})
    for gradient, values in zip(found, (w, alpha), strict=True):
        for name in values:
            gradient[name] = np.zeros_like(values[name])
            for index in np.ndindex(values[name].shape):
                original = values[name][index]
                sides = []
                for h in (1e-6, -1e-6):
                    values[name][index] = original + h
                    sides.append(look_ahead(w, alpha, data, size, given)[0])
                values[name][index] = original
                gradient[name][index] = (sides[0] - sides[1]) / 2e-6
    return found


def clipped(gradients: Arrays, max_norm: float | None) -> Arrays:
    """Return the gradients, clipped to a global norm of at most `max_norm`."""
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    scale = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
    return {n: g * scale for n, g in gradients.items()}


def assert_as_by_hand(
    backend: str, second_order: bool = False, clip: float | None = None, **options: Any
) -> list[Arrays]:
    """Raise AssertionError unless every step is as by hand; return alpha after every step."""
    make, keys = component("algo", "lamaml", backend)
    make_optimizer, optimizer_keys = component("optimizer", "sgd", backend)
    plan, losses, steps = PlanRecorder(), LossRecorder(), StepRecorder()
    algorithm = make(
        benchmark=TinyBenchmark(size=5),
        backbone=Linear(backend=backend),
        optimizer=make_optimizer(**optimizer_keys | {"lr": LR}),
        training=TrainingOptions(epochs_per_task=2),
        callbacks=[plan, losses, steps] if backend == "torch" else [plan, losses],
        device="cpu",
        **keys | TINY | {"second_order": second_order, "clip": clip} | options,
    )
    algorithm.fit()
    recorded = dict(enumerate(steps.steps)) or {len(plan.rows) - 1: algorithm.export_arrays()}
    drawn = draw_initial_weights({KERNEL: (2, 3), BIAS: (3,)}, "torch_default", algorithm.random)
    w = {n: a.astype(np.float64) for n, a in drawn.items()}
    alpha = {n: np.full_like(a, algorithm.alpha_init) for n, a in w.items()}
    rates = []
    memory: dict[int, tuple[np.ndarray, int]] = {}
    for number, (row, dataset) in enumerate(zip(plan.rows, plan.datasets, strict=True)):
        x, y = inputs_of(dataset)[row["index"]], dataset.y[row["index"]]
        stored = [memory[int(slot)] for slot in row["replay_slot"]]
        replayed = (
            np.array([s[0] for s in stored]).reshape(-1, 2),
            np.array([s[1] for s in stored], int),
        )
        meta = np.concatenate([x, replayed[0]]), np.concatenate([y, replayed[1]])
        data = Batches(x, y, *meta, algorithm.inner_relu)
        size = algorithm.inner_chunk_size
        loss = look_ahead(w, alpha, data, size)[0]
        theta, rate = differences(w, alpha, data, size, second_order)
        if not second_order:
            for by_difference, by_formula in zip(
                (theta, rate), closed_form(w, alpha, data, size), strict=True
            ):
                for n in w:
                    np.testing.assert_allclose(by_difference[n], by_formula[n], atol=1e-8)
        if algorithm.learn_lr:
            rate = clipped(rate, clip)
            alpha = {n: alpha[n] - algorithm.lr_alpha * rate[n] for n in w}
        theta = clipped(theta, clip)
        step = {n: LR if algorithm.sync_update else np.maximum(alpha[n], 0) for n in w}
        w = {n: w[n] - step[n] * theta[n] for n in w}
        for sample, slot in enumerate(row["write_slot"]):
            memory[int(slot)] = x[sample], int(y[sample])
        memory.pop(algorithm.memory_size, None)  # not stored
        rates.append(alpha)
        found = np.concatenate(losses.losses)[number]
        np.testing.assert_allclose(found, loss, rtol=1e-5, err_msg=f"step {number}")
        expected = {f"params/{n}": a for n, a in w.items()}
        expected |= {f"state/alpha/{n}": a for n, a in alpha.items()}
        for name in expected if number in recorded else ():
            where = f"step {number}: {name}"
            actual = recorded[number][name]
            np.testing.assert_allclose(actual, expected[name], rtol=2e-5, atol=2e-5, err_msg=where)
    return rates


@jax_in_full
@pytest.mark.parametrize("second_order", [False, True], ids=["first", "second"])
def test_both_gradients_are_as_by_hand(backend: str, second_order: bool):
    """Compare with finite differences of the meta-loss, in first order also with the closed form.

    Alpha is updated first, and theta uses the new alpha. Batches of 3 have chunks of 2 and 1, the
    batch of 2 has one.
    """
    assert_as_by_hand(backend, second_order)


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("torch", {"sync_update": True}),
        ("torch", {"sync_update": True, "learn_lr": False}),
        ("torch", {"learn_lr": False}),
        ("torch", {"clip": 0.05}),
        pytest.param("jax", {"clip": 0.05}, marks=pytest.mark.full),
        pytest.param("jax", {"sync_update": True}, marks=pytest.mark.full),
        pytest.param("jax", {"learn_lr": False}, marks=pytest.mark.full),
    ],
)
def test_steps_of_its_variants_are_as_by_hand(backend: str, options: dict[str, Any]):
    """Sync (plain SGD), C-MAML, a fixed alpha, and both gradients clipped by their own norms."""
    rates = assert_as_by_hand(backend, **options)
    moved = any((rates[-1][n] != 0.4).any() for n in rates[-1])
    assert moved is options.get("learn_lr", True)


@jax_in_full
@pytest.mark.parametrize("inner_relu", [False, True])
def test_alpha_at_or_below_zero_stays_with_inner_relu_only(backend: str, inner_relu: bool):
    """With it the gradient there is 0; without it some come back."""
    options = {"alpha_init": 0.02, "lr_alpha": 3.0, "inner_relu": inner_relu}
    rates = assert_as_by_hand(backend, **options)
    stopped = [(a[n] <= 0, a[n], b[n]) for a, b in zip(rates, rates[1:], strict=False) for n in a]
    assert any(at.any() for at, _, _ in stopped)
    assert all((a[at] == b[at]).all() for at, a, b in stopped) is inner_relu
    assert any((b[at] > 0).any() for at, _, b in stopped) is not inner_relu


@jax_in_full
def test_alpha_of_zero_learns_nothing(backend: str):
    """With `inner_relu`, since relu'(0) = 0 on both backends: theta and alpha keep their bits."""
    spec = {"stream": {"num_tasks": 1, "samples_per_task": 20}, "inner_chunk_size": 5}
    spec["inner_relu"] = True
    trace = run("lamaml", backend, **spec, alpha_init=0.0)
    start = build("lamaml", backend, **spec)
    Trainer(start).setup()
    for name, value in start.export_arrays().items():
        if name.startswith("params/"):
            assert (trace.arrays[name] == value).all()
    assert not any(a.any() for n, a in trace.arrays.items() if n.startswith("state/alpha"))


# ---- the plan


def test_plan_of_glances():
    """A batch comes three times, first in its own order, is offered once, and gets new replay."""
    plan = PlanRecorder()
    stream = {"samples_per_task": 25, "num_tasks": 2}
    options = {"glances": 3, "memory_size": 12, "replay_batch_size": 4, "inner_chunk_size": 10}
    trace = run("lamaml", "torch", callbacks=[plan], stream=stream, **options)
    naive = PlanRecorder()
    run("naive", "torch", callbacks=[naive], stream=stream)
    groups = [plan.rows[i : i + 3] for i in range(0, len(plan.rows), 3)]
    assert len(groups) == len(naive.rows) == 12
    for number, (rows, alone) in enumerate(zip(groups, naive.rows, strict=True)):
        assert (rows[0]["index"] == alone["index"]).all()
        for row in rows[1:]:
            assert sorted(row["index"]) == sorted(alone["index"])
            assert (row["write_slot"] == 12).all(), "offered at a later glance"
        orders = {tuple(row["index"]) for row in rows}
        assert len(orders) == 3, "two glances had the same order"
        assert len({tuple(sorted(row["replay"])) for row in rows}) > 1
        if number % 6 >= 3:  # second epoch
            assert (rows[0]["write_slot"] == 12).all()
    assert [len(row["replay"]) for row in groups[0]] == [0, 4, 4]
    assert trace.algorithm.memory.seen == 50
    assert trace.algorithm.memory.filled == 12
    assert trace.algorithm.progress.memory_bytes == sum(
        a.nbytes for n, a in trace.arrays.items() if n in ("memory/x", "memory/y", "memory/t")
    )
    assert trace.algorithm.engine.total_steps == trace.algorithm.progress.global_step == 36


@pytest.mark.ci
def test_replayed_samples_are_from_memory_and_affect_the_loss():
    """Meta-batches contain samples of past tasks; without replay the losses differ."""
    plan = PlanRecorder()
    trace = run("lamaml", "torch", callbacks=[plan], **SPEC)
    plans = zip(plan.rows, plan.datasets, plan.tasks, strict=True)
    assert np.concatenate([p.t[r["replay"]] < task - 1 for r, p, task in plans]).any()
    empty = run("lamaml", "torch", kind=forgetful("torch"), **SPEC)
    assert abs(empty.losses[2:] - trace.losses[2:]).max() > 1e-2


# ---- conformance


def forgetful(backend: str) -> type:
    """Return La-MAML that replays nothing."""

    @dataclass(kw_only=True, eq=False)
    class Forgetful(algorithm_class("lamaml", backend)):
        def plan_epoch(self, task, epoch, num_samples):
            parts = super().plan_epoch(task, epoch, num_samples)
            return [part | {"replay": part["replay"][:, :0]} for part in parts]

    return Forgetful


@jax_in_full
def test_reduces_to_naive(backend: str):
    """With the options in the docstring of the package; to the bit on PyTorch."""
    naive = shared_run("naive", backend, **SETTING)
    options = {
        "alpha_init": 0.0,
        "learn_lr": False,
        "sync_update": True,
        "glances": 1,
        "inner_chunk_size": 10,
        "clip": None,
    }
    trace = run("lamaml", backend, kind=forgetful(backend), **SETTING, **options)
    tolerance = 0.0 if backend == "torch" else 1e-5
    assert_close("losses", trace.losses, naive.losses, tolerance)
    kept = {n: a for n, a in trace.arrays.items() if n in naive.arrays}
    assert_same_arrays(kept, naive.arrays, tolerance)


@pytest.mark.ci
@pytest.mark.parametrize(
    "option",
    [
        {"memory_size": 20},
        {"replay_batch_size": 3},
        {"glances": 3},
        {"inner_chunk_size": 10},
        {"second_order": True},
        {"alpha_init": 0.05},
        {"learn_lr": False},
        {"lr_alpha": 0.05},
        {"sync_update": True},
        {"clip": 0.1, "training": {"epochs_per_task": 2}},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_matter(option: dict[str, Any]):
    """Each changes the numbers of a run."""
    ordinary = shared_run("lamaml", "torch", **SPEC)
    trace = run("lamaml", "torch", **SPEC | option)
    steps = min(len(trace.losses), len(ordinary.losses))
    assert abs(trace.losses[:steps] - ordinary.losses[:steps]).max() > 1e-3


@pytest.mark.ci
def test_optimizer_and_schedule_matter_with_sync_update_only():
    """Otherwise the learning rates are those of alpha."""
    other = {"optimizer_options": {"lr": 0.2}, "training": {"epochs_per_task": 2}}
    plain = {"training": {"epochs_per_task": 2}}
    base = {k: v for k, v in SPEC.items() if k not in ("training", "optimizer_options")}
    base["stream"] = base["stream"] | {"num_tasks": 5, "samples_per_task": 20}
    a, b = (run("lamaml", "torch", **base, **o).losses for o in (other, plain))
    assert (a == b).all()
    a, b = (run("lamaml", "torch", **base, **o, sync_update=True).losses for o in (other, plain))
    assert abs(a - b).max() > 1e-3


def test_meta_batches_update_the_running_statistics():
    """Each inner step updates the running mean once, with the meta-batch."""
    import torch

    algorithm = build(
        "lamaml", "torch",
        stream={"num_tasks": 1, "samples_per_task": 20}, training={"epochs_per_task": 1},
        backbone={"batch_norm": True}, glances=1, inner_chunk_size=1, alpha_init=0.0,
        learn_lr=False,
    )  # fmt: skip
    algorithm.fit()
    assert algorithm.module.training
    order = algorithm.random.generator("data", 1, 1).permutation(20)
    # Only the statistics change. The memory batch of the second batch is the first batch.
    mean = torch.zeros(16)
    for rows in (order[:10], order):
        with torch.no_grad():
            x = algorithm.engine.inputs(algorithm.engine.dataset.x[rows.tolist()]).flatten(1)
            batch_mean = algorithm.module.hidden_0(x).mean(0)
        for _ in range(10):
            mean = 0.9 * mean + 0.1 * batch_mean
    torch.testing.assert_close(algorithm.stats["norm_0/mean"], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory_size", 0),
        ("replay_batch_size", 0),
        ("glances", 0),
        ("inner_chunk_size", 0),
        ("second_order", 1),
        ("alpha_init", -0.1),
        ("learn_lr", "yes"),
        ("lr_alpha", -1.0),
        ("sync_update", None),
        ("inner_relu", 0),
        ("clip", 0.0),
    ],
)
def test_refuses(key: str, value: Any):
    """The message names the key and the value."""
    with pytest.raises(ConfigError, match=f"{key}={value!r}"):
        build("lamaml", "torch", **{key: value})


def test_clip_stands_in_for_the_trainings():
    """It is 2 unless it is null, and two different ones are refused."""
    assert build("lamaml", "torch").training.grad_clip == 2.0
    by_training = build("lamaml", "torch", clip=None, training={"grad_clip": 0.5})
    assert by_training.training.grad_clip == 0.5
    assert build("lamaml", "torch", clip=None).training.grad_clip is None
    assert build("lamaml", "torch", training={"grad_clip": 2.0}).training.grad_clip == 2.0
    with pytest.raises(ConfigError, match="training.grad_clip=1.0: must not be set .*algo.clip=2"):
        build("lamaml", "torch", training={"grad_clip": 1.0})

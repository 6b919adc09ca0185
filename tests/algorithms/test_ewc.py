"""EWC: a softmax regression by hand, with one penalty per past task, and every option."""

from __future__ import annotations

import numpy as np
import pytest
from algorithms.ewc_by_hand import BIAS, KERNEL, ewc_by_hand
from algorithms.side_effects import assert_differs_from_naive, assert_reduces_to_naive
from experiments import BACKENDS, algorithm_class, build, component, every_backend, jax_in_full, run
from tiny import Linear, TinyBenchmark

from seqrun.algorithms.base import TrainingOptions
from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError

OPTIONS = {
    "empirical": {},
    "exact": {"fisher": "exact"},
    "sample": {"fisher": "sample"},
    "pred": {"fisher": "pred"},
    "batched": {"fisher": "batched"},
    "batches": {"fisher": "batched", "fisher_batch_size": 5},
    "weighted": {"fisher_weight": "p"},
    "some": {"fisher_samples": 4},
    "running": {"fisher_running": True},
    "running_often": {"fisher_running": True, "fisher_running_every": 4},
    "running_rarely": {"fisher_running": True, "fisher_running_every": 50},
    "whole_lambda": {"penalty_scale": 1.0},
}


def fitted(backend: str, **options):
    """Fit EWC on the tiny stream, with 12 steps per task, so that the running Fisher is updated."""
    from importlib import import_module

    algorithm = algorithm_class("ewc", backend)(
        benchmark=TinyBenchmark(),
        backbone=Linear(backend=backend),
        optimizer=import_module(f"seqrun.optimizers.{backend}").SGD(lr=0.3),
        training=TrainingOptions(epochs_per_task=4),
        ewc_lambda=3.0,
        clip=None,
        **options,
    )
    algorithm.fit()
    return algorithm


@jax_in_full
@pytest.mark.parametrize("name", OPTIONS)
def test_three_tasks_are_as_by_hand(name: str, backend: str):
    """Compare with float64 and an explicit penalty for every past task.

    The rounding error of float32 over 36 steps is 2 u S = 4e-6, times up to lambda F = 1.
    """
    options = OPTIONS[name]
    expected = ewc_by_hand(lr=0.3, ewc_lambda=3.0, epochs=4, **options)
    arrays = fitted(backend, **options).export_arrays()
    for leaf in (KERNEL, BIAS):
        np.testing.assert_allclose(arrays[f"params/{leaf}"], expected.steps[-1][leaf], atol=1e-5)
        kept = expected.fishers[-1:] if name.startswith("running") else expected.fishers
        total = sum(fisher[leaf] for fisher in kept)
        np.testing.assert_allclose(arrays[f"state/importance/{leaf}"], total, atol=1e-5)
        pairs = zip(kept, expected.solutions[-len(kept) :], strict=True)
        weighted_sum = sum(fisher[leaf] * solution[leaf] for fisher, solution in pairs)
        offset = arrays.get(f"state/offset/{leaf}", 0.0)
        merged = total * (arrays[f"state/anchor/{leaf}"] + offset)
        np.testing.assert_allclose(merged, weighted_sum, atol=1e-5)


@pytest.mark.ci
def test_every_option_matters():
    """No two settings end with the same importance."""
    ends = {name: fitted("torch", **options).export_arrays() for name, options in OPTIONS.items()}
    keys = [f"state/importance/{KERNEL}", f"params/{KERNEL}"]
    for i, a in enumerate(ends):
        for b in list(ends)[i + 1 :]:
            assert any(abs(ends[a][k] - ends[b][k]).max() > 1e-4 for k in keys), (a, b)


@jax_in_full
def test_lambda_zero_is_naive(backend: str):
    """To the bit on PyTorch, since the Fisher has no side effects; up to rounding on JAX."""
    assert_reduces_to_naive("ewc", backend, ewc_lambda=0.0, clip=None)


def test_lambda_above_zero_is_not_naive():
    """From task 2 on; tests/parity covers JAX."""
    assert_differs_from_naive("ewc", ewc_lambda=20.0)


@pytest.mark.ci
@every_backend
def test_importance_is_positive_and_not_constant(backend: str):
    """Nowhere negative, with a positive sum, and different between parameters."""
    arrays = run("ewc", backend, training={"epochs_per_task": 1}).arrays
    importance = {n: a for n, a in arrays.items() if n.startswith("state/importance/")}
    assert len(importance) == 6
    for name, omega in importance.items():
        assert (omega >= 0).all() and omega.sum() > 0 and np.ptp(omega) > 0, name


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("task", [1, 2])
def test_every_past_task_is_protected(task: int, backend: str):
    """Without a past task's Fisher, task 3 ends with other parameters."""
    spec = {"training": {"epochs_per_task": 1}, "ewc_lambda": 50.0}

    class Forgetful(algorithm_class("ewc", backend)):
        def consolidate(self, importance):
            if self.task == task:
                importance = {n: 0 * omega for n, omega in importance.items()}
            return super().consolidate(importance)

    whole = run("ewc", backend, **spec).arrays
    without = run("ewc", backend, kind=Forgetful, **spec).arrays
    moved = max(abs(whole[n] - without[n]).max() for n in whole if n.startswith("params/"))
    assert moved > 1e-3


@pytest.mark.parametrize(
    ("algo", "options", "version"),
    [
        ("ewc", {}, 2),
        ("ewc", {"clip": None}, 2),
        ("ewc", {"clip": None, "fisher_running": True}, 2),
        ("ewc", {"ewc_lambda": 0}, 2),
        ("ewc", {"clip": None, "ewc_lambda": 0}, 1),
        ("ewc", {"ewc_lambda": 0, "training": TrainingOptions(grad_clip=1.0)}, 1),
        ("online_ewc", {}, 2),
        ("online_ewc", {"clip": None}, 1),
        ("online_ewc", {"training": TrainingOptions(grad_clip=0.5)}, 1),
        ("online_ewc", {"clip": None, "fisher_running": True}, 2),
        ("online_ewc", {"clip": None, "fisher_running": True, "penalty_scale": 0}, 1),
    ],
)
def test_which_numbers_changed(algo: str, options: dict, version: int):
    """Those of EWC's merged anchor, of the running Fisher and of `clip`, where they have effect."""
    for backend in BACKENDS:
        kind, keys = component("algo", algo, backend)
        assert kind.numerics({"training": TrainingOptions()} | keys | options) == version


@every_backend
def test_the_gradient_is_clipped_by_default(backend: str):
    """To a norm of 1, unless `training.grad_clip` sets another: the options reach the engine."""
    clips = [
        build("ewc", backend, **options).hparams().get("grad_clip")
        for options in ({}, {"training": {"grad_clip": 5.0}}, {"clip": 0.3}, {"clip": None})
    ]
    assert clips == [1.0, 5.0, 0.3, None]


@jax_in_full
def test_heads_of_later_tasks_have_no_importance(backend: str):
    """With one head per task, outputs of later tasks have no importance yet."""
    stream = {"scenario": "task", "num_tasks": 5}
    algorithm = build("ewc", backend, benchmark="split_digits", stream=stream)
    seen = []

    class Watch(BaseCallback):
        def on_after_task(self, run):
            omega = run.algorithm.export_arrays()["state/importance/classifier/bias"]
            seen.append((omega > 0).tolist())

    algorithm.callbacks = [Watch()]
    algorithm.fit()
    assert seen == [[c < 2 * task for c in range(10)] for task in range(1, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ewc_lambda": -1.0}, "ewc_lambda=-1.0"),
        ({"clip": 0.0}, "clip=0.0: must be a number > 0"),
        ({"penalty_scale": -1.0}, "penalty_scale=-1.0"),
        ({"fisher": "exakt"}, "did you mean exact"),
        ({"fisher_weight": "q"}, "fisher_weight='q'"),
        ({"fisher_samples": 0}, "fisher_samples=0"),
        ({"fisher": "batched", "fisher_batch_size": 0}, "fisher_batch_size=0"),
        ({"fisher_batch_size": 5}, "fisher_batch_size=5: must be null unless"),
        ({"fisher": "batched", "fisher_weight": "p"}, "must be none with fisher='batched'"),
        ({"fisher": "exact", "fisher_weight": "p"}, "must be none with fisher='exact'"),
        ({"fisher_running": "yes"}, "fisher_running='yes'"),
        ({"fisher_running_every": 0}, "fisher_running_every=0: must be an integer >= 1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        build("ewc", "torch", **options)

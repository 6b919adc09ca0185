"""Online EWC: one anchor and fading importance by hand, compared with EWC, and every option."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from algorithms.penalty_by_hand import (
    BIAS,
    KERNEL,
    Arrays,
    TaskEnd,
    assert_as_by_hand,
    close,
    gradients,
    tiny,
)
from algorithms.side_effects import assert_differs_from_naive, assert_reduces_to_naive, jax_in_full
from comparison import assert_same_run
from experiments import BACKENDS, build, every_backend, shared_run
from tiny import softmax

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.checks import ConfigError

SETTING = {"lr": 0.2}
RUNNING = {"fisher_running": True, "ewc_lambda": 5.0, "gamma": 0.5}


def fisher(end: TaskEnd, kind: str) -> Arrays:
    """Return the mean over samples, and the p-weighted sum over labels, of squared gradients."""
    p = softmax(end.x @ end.w[KERNEL] + end.w[BIAS])
    if kind == "exact":
        labels = [(np.full_like(end.y, c), p[:, c]) for c in range(3)]
    else:
        labels = [(p.argmax(1) if kind == "pred" else end.y, np.ones(len(end.y)))]
    parts = [(gradients(end.w, end.x, y), weight) for y, weight in labels]
    return {n: sum(np.tensordot(w, g[n] ** 2, 1) for g, w in parts) / len(end.y) for n in end.w}


def rule(gamma: float, kind: str):
    """Return F <- gamma F + F_t."""
    return lambda end: {n: gamma * end.past[n] + f for n, f in fisher(end, kind).items()}


@jax_in_full
@pytest.mark.parametrize(
    ("gamma", "kind"),
    [
        (0.5, "empirical"),
        pytest.param(0.0, "exact", marks=pytest.mark.full),
        pytest.param(1.0, "pred", marks=pytest.mark.full),
    ],
)
def test_every_step_is_as_by_hand(backend: str, gamma: float, kind: str):
    """Losses, parameters, anchor and importance, over three tasks.

    It detects a Fisher of the last batch only, gradients summed over Fisher batches, a penalty that
    leaks into the Fisher, past importance that is overwritten, and a stale anchor in task 3.
    """
    assert_as_by_hand(
        rule(gamma, kind),
        2.0,
        "online_ewc",
        backend,
        setting=SETTING,
        ewc_lambda=4.0,
        clip=None,
        gamma=gamma,
        fisher=kind,
    )


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("algo", ["ewc", "online_ewc"])
@pytest.mark.parametrize("size", [3, 1000])
def test_evaluation_batches_change_nothing(algo: str, backend: str, size: int):
    """All samples count once, whatever the batch size of the Fisher."""
    end = tiny(algo, backend, **SETTING, stream={"num_tasks": 1, "eval_batch_size": size})
    arrays = end.export_arrays()
    w = {n: arrays[f"params/{n}"] for n in (KERNEL, BIAS)}
    data = end.benchmark.task_data(1)
    task = TaskEnd(w, w, w, w, data.x.reshape(7, 2) / 255.0, data.y)
    close({n: arrays[f"state/importance/{n}"] for n in w}, fisher(task, "empirical"))


@pytest.mark.ci
@every_backend
def test_beside_ewc(backend: str):
    """With gamma = 1, parameters and importance equal EWC's after two tasks; the anchor differs."""
    options = {"lr": 0.2, "ewc_lambda": 4.0, "stream": {"num_tasks": 2}}
    ewc = tiny("ewc", backend, **options).export_arrays()
    online = tiny("online_ewc", backend, gamma=1.0, **options).export_arrays()
    faded = tiny("online_ewc", backend, gamma=0.5, **options).export_arrays()
    for n in (KERNEL, BIAS):
        close({n: online[f"params/{n}"]}, {n: ewc[f"params/{n}"]}, 1e-6)
        close({n: online[f"state/importance/{n}"]}, {n: ewc[f"state/importance/{n}"]}, 1e-6)
        np.testing.assert_array_equal(online[f"state/anchor/{n}"], online[f"params/{n}"])
        assert abs(ewc[f"state/offset/{n}"]).max() > 1e-3
        assert (faded[f"state/importance/{n}"] < online[f"state/importance/{n}"]).all()


@jax_in_full
def test_the_running_fisher_goes_on_and_fades(backend: str):
    """Each task's Fisher is scaled to [0, 1], and gamma weights the past."""
    trace = shared_run("online_ewc", backend, stepped=True, **RUNNING)
    largest = max(a.max() for n, a in trace.arrays.items() if n.startswith("state/importance/"))
    assert 1.0 <= largest <= 1.75
    assert trace.arrays["state/running/hidden_0/kernel"].any()
    assert not trace.arrays["state/squares/hidden_0/kernel"].any()
    assert not trace.arrays["state/count"].any()


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize(("how", "size"), [("max", max), ("sum", sum)])
def test_a_normalised_fisher(backend: str, how: str, size):
    """Each task's Fisher is divided by one number for all parameters; one of zeros stays."""

    def ended(gamma: float, fisher_normalize: str) -> BaseAlgorithm:
        options = {"gamma": gamma, "fisher_normalize": fisher_normalize, "ewc_lambda": 0.0}
        return tiny("online_ewc", backend, lr=0.2, stream={"num_tasks": 2}, **options)

    def importance(gamma: float, fisher_normalize: str) -> Arrays:
        arrays = ended(gamma, fisher_normalize).export_arrays()
        return {n: arrays[f"state/importance/{n}"] for n in (KERNEL, BIAS)}

    second, both = importance(0.0, "none"), importance(0.5, "none")
    first = {n: (both[n] - second[n]) / 0.5 for n in both}
    sizes = [size(v for a in task.values() for v in a.ravel()) for task in (first, second)]
    for n, found in importance(0.5, how).items():
        expected = 0.5 * first[n] / sizes[0] + second[n] / sizes[1]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    zero = {n: 0 * p for n, p in ended(0.0, how).params.items()}
    normalized = import_module(f"seqrun.algorithms.ewc.fisher.{backend}").normalized
    assert not any(np.array(a.tolist()).any() for a in normalized(zero, how).values())


@pytest.mark.ci
@jax_in_full
def test_reduces_to_naive(backend: str):
    """ewc_lambda = 0 is naive, since the Fisher has no side effects; another value is not."""
    assert_reduces_to_naive("online_ewc", backend, ewc_lambda=0.0, clip=None)
    options = {"ewc_lambda": 0.0, "clip": None, "fisher_running": True}
    assert_reduces_to_naive("online_ewc", "torch", **options)
    assert_differs_from_naive("online_ewc", ewc_lambda=20.0)


@pytest.mark.parametrize(
    "option",
    [
        {"gamma": 0.1},
        {"fisher": "exact"},
        {"fisher": "sample"},
        {"fisher": "pred"},
        {"fisher": "batched"},
        {"fisher_weight": "p"},
        {"fisher_running": True},
        {"fisher_normalize": "max"},
        {"fisher_normalize": "sum"},
        {"fisher_samples": 10},
        {"penalty_scale": 0.1},
    ],
    ids=str,
)
def test_options_matter(option: dict):
    """A run with the option differs."""
    spec = {"ewc_lambda": 5.0}
    shipped, changed = (shared_run("online_ewc", "torch", **spec, **o) for o in ({}, option))
    name = "params/hidden_0/kernel"
    assert abs(shipped.arrays[name] - changed.arrays[name]).max() > 1e-6


@pytest.mark.ci
def test_twins_agree_on_the_running_fisher():
    """At every step; tests/parity has the default options, and the other Fishers with EWC."""
    by_torch, by_jax = (shared_run("online_ewc", b, stepped=True, **RUNNING) for b in BACKENDS)
    assert_same_run(by_jax, by_torch, 1e-4)


@every_backend
def test_refuses(backend: str):
    """A gamma out of range, an unknown way to normalise."""
    with pytest.raises(ConfigError, match="fisher_normalize='mean': must be one of none, max, sum"):
        build("online_ewc", backend, fisher_normalize="mean")
    for gamma in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=rf"gamma={gamma}: must be a number in \[0, 1\]"):
            build("online_ewc", backend, gamma=gamma)

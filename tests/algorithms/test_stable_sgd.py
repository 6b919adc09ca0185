"""Stable SGD: its schedule by hand, its dropout, and otherwise naive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from algorithms.side_effects import jax_in_full
from algorithms.task_ends import TaskRecorder
from comparison import assert_close, assert_same_arrays, assert_same_run
from experiments import BACKENDS, build, component, run
from tiny import Linear, TinyBenchmark

from seqrun.checks import ConfigError

MOMENTUM = {"optimizer_options": {"lr": 0.05, "momentum": 0.8}}
OFF = {"gamma": 1.0, "lr_min": 0.0, "reinit_optimizer": "task", "dropout": 0.0, "momentum": None}


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"gamma": 0.5}, [0.025, 0.0125, 0.00625]),
        ({"gamma": 0.5, "decay_first_task": False}, [0.05, 0.025, 0.0125]),
        ({"gamma": 0.5, "lr_min": 0.01}, [0.025, 0.0125, 0.01]),
        ({"gamma": 1e-3}, [5e-5, 5e-5, 5e-5]),
        ({"gamma": 1.0}, [0.05, 0.05, 0.05]),
    ],
)
def test_learning_rates(options: dict, rates: list[float]):
    """max(lr * gamma^t, lr_min), with t from 1 as in the authors' code, or from 0."""
    tasks = TaskRecorder()
    run("stable_sgd", "torch", callbacks=[tasks], training={"epochs_per_task": 1}, **options)
    np.testing.assert_allclose([hparams["lr"] for hparams in tasks.hparams], rates, rtol=1e-12)


@jax_in_full
def test_it_equals_naive_with_the_same_options(backend: str):
    """Naive with the same schedule, dropout and momentum takes the same steps, to the bit."""
    training = {
        "lr_decay": 0.55,
        "lr_min": 5e-5,
        "decay_first_task": True,
        "reinit_optimizer": "epoch",
        "epochs_per_task": 2,
    }
    naive = run("naive", backend, training=training, backbone={"dropout": 0.25}, **MOMENTUM)
    assert_same_run(run("stable_sgd", backend), naive, 0.0)


@jax_in_full
def test_it_reduces_to_naive(backend: str):
    """Without dropout, decay and floor, to the bit."""
    naive = run("naive", backend, **MOMENTUM)
    assert_same_run(run("stable_sgd", backend, **MOMENTUM, **OFF), naive, 0.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"gamma": 0.5},
        {"lr_min": 0.06},
        {"reinit_optimizer": "epoch"},
        {"reinit_optimizer": "never"},
        {"dropout": 0.5},
        {"momentum": 0.8, "optimizer_options": {"lr": 0.05}},
        {"gamma": 0.5, "decay_first_task": False},
    ],
    ids=str,
)
def test_every_option_matters(changed: dict):
    """Each one alone changes the losses."""
    base = OFF | ({"gamma": 0.5} if "decay_first_task" in changed else {})
    optimizer = MOMENTUM if "momentum" not in changed else {}
    plain = run("stable_sgd", "torch", **optimizer, **base)
    other = run("stable_sgd", "torch", **optimizer | base | changed)
    assert abs(other.losses - plain.losses).max() > 1e-3


@jax_in_full
def test_dropout_is_set_in_the_backbone(backend: str):
    """Null keeps the backbone's dropout, a number replaces it; it is off in evaluation."""
    given = build("stable_sgd", backend, dropout=None, backbone={"dropout": 0.4})
    assert given.backbone.dropout == 0.4 and given.backbone.is_noisy
    shipped = build("stable_sgd", backend)
    assert shipped.backbone.dropout == 0.25 and shipped.backbone.is_noisy
    assert not build("stable_sgd", backend, dropout=0.0).backbone.is_noisy
    assert build("stable_sgd", backend, backbone={"dropout": 0.25}).backbone.dropout == 0.25
    noisy, still = (run("stable_sgd", backend, dropout=p) for p in (0.25, 0.0))
    assert_close("untrained row", noisy.matrix[0], still.matrix[0], 0.0)
    assert abs(noisy.losses - still.losses).max() > 1e-3


@jax_in_full
def test_momentum_is_set_in_the_optimizer(backend: str):
    """Null keeps the optimizer's momentum, a number replaces it."""

    def momentum(**options: Any) -> float:
        algorithm = build("stable_sgd", backend, **options)
        return algorithm.optimizer.hparams()["momentum"]

    given = {"optimizer_options": {"momentum": 0.4}}
    assert momentum() == 0.8
    assert momentum(momentum=None) == 0.0
    assert momentum(momentum=None, **given) == momentum(momentum=0.4, **given) == 0.4
    assert build("stable_sgd", backend, momentum=None, optimizer="adam").optimizer.name == "adam"


@pytest.mark.full
def test_twins_agree_without_noise():
    """At every step, with the default schedule, several epochs, momentum and clipping."""
    spec = MOMENTUM | {"training": {"epochs_per_task": [1, 3, 2], "grad_clip": 0.5}}
    by_torch, by_jax = (
        run("stable_sgd", backend, stepped=True, dropout=0.0, **spec) for backend in BACKENDS
    )
    assert_same_run(by_jax, by_torch, 1e-5)


@pytest.mark.ci
@jax_in_full
def test_noise_repeats(backend: str):
    """The same seed drops the same units, another seed others."""
    first, again, other = (run("stable_sgd", backend, streams={"noise": n}) for n in (1, 1, 2))
    assert_same_arrays(first.arrays, again.arrays, 0.0)
    assert abs(first.losses - other.losses).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, r"gamma=0.0: must be a number in \(0, 1\]"),
        ({"gamma": 1.5}, r"gamma=1.5: must be a number in \(0, 1\]"),
        ({"lr_min": -1.0}, "lr_min=-1.0"),
        ({"decay_first_task": 1}, "decay_first_task=1"),
        ({"reinit_optimizer": "epochs"}, "reinit_optimizer='epochs'.*did you mean epoch"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"momentum": 1.0}, r"momentum=1.0: must be a number in \[0, 1\)"),
        ({"training": {"lr_decay": 0.9}}, "training.lr_decay=0.9: .* algo.gamma=0.55"),
        ({"training": {"lr_min": 0.1}}, "training.lr_min=0.1: .* algo.lr_min=5e-05"),
        (
            {"training": {"decay_first_task": True}, "decay_first_task": False},
            "training.decay_first_task=True: .* algo.decay_first_task=False",
        ),
        ({"training": {"reinit_optimizer": "never"}}, "training.reinit_optimizer='never'"),
        ({"backbone": {"dropout": 0.5}}, "backbone.dropout=0.5: .* algo.dropout=0.25"),
        (
            {"optimizer_options": {"momentum": 0.5}, "momentum": 0.8},
            "optimizer.momentum=0.5: .* algo.momentum=0.8 .null leaves it to optimizer.momentum.",
        ),
        (
            {"optimizer": "adam", "momentum": 0.8},
            "momentum=0.8: must be null with optimizer=adam, which has no momentum to set",
        ),
    ],
)
def test_refusals(options: dict, message: str):
    """They name the key, the value and what to set instead."""
    with pytest.raises(ConfigError, match=message):
        build("stable_sgd", "torch", **options)


def test_a_backbone_without_dropout_is_refused():
    """Unless dropout is null."""
    make, keys = component("algo", "stable_sgd", "torch")
    optimizer, optimizer_keys = component("optimizer", "sgd", "torch")
    parts = {
        "benchmark": TinyBenchmark(),
        "backbone": Linear(),
        "optimizer": optimizer(**optimizer_keys),
    }
    with pytest.raises(ConfigError, match="dropout=0.25: must be null with backbone=linear"):
        make(**parts, **keys)
    make(**parts, **keys | {"dropout": None})

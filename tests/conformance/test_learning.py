"""On shipped benchmarks, naive forgets, and methods that claim to forget less do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from experiments import BACKENDS, component

from seqrun.algorithms.base import TrainingOptions
from seqrun.evaluation.metrics import compute_metrics


def scores(
    algo: str,
    backend: str,
    seeds: tuple[int, ...],
    *,
    stream: Mapping[str, Any] | None = None,
    benchmark: str = "rotated_digits",
    network: str = "mlp",
    backbone: Mapping[str, Any] | None = None,
    lr: float | None = None,
    grad_clip: float | None = None,
    **keys: Any,
) -> dict[str, float]:
    """Return the mean metrics of the default experiment with an algorithm and changed options."""
    rate = {} if lr is None else {"lr": lr}
    changed = {"benchmark": stream, "backbone": backbone, "optimizer": rate}
    metrics = []
    for seed in seeds:
        kind, own = component("algo", algo, backend)
        parts = {}
        for part, name in (("benchmark", benchmark), ("backbone", network), ("optimizer", "sgd")):
            make, options = component(part, name, backend)
            parts[part] = make(**options | dict(changed[part] or {}))
        training = TrainingOptions(grad_clip=grad_clip)
        algorithm = kind(**parts, training=training, seed=seed, **own | keys)
        algorithm.fit()
        metrics.append(compute_metrics(algorithm.accuracy_matrix))
    measured = [name for name, value in metrics[0].items() if value is not None]
    return {name: np.mean([m[name] for m in metrics]) for name in measured}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("backend", "seeds"), [("torch", (0, 1, 2)), pytest.param("jax", (0,), marks=pytest.mark.full)]
)
def test_ewc_forgets_less_than_naive(backend: str, seeds: tuple[int, ...]):
    """With defaults over seeds 0-2, naive forgets 0.39 and EWC 0.24; a gap of 0.1 suffices."""
    naive, ewc = (scores(algo, backend, seeds) for algo in ("naive", "ewc"))
    assert naive["average_forgetting"] > 0.25
    assert ewc["average_forgetting"] < naive["average_forgetting"] - 0.1
    assert ewc["average_accuracy"] > naive["average_accuracy"] + 0.03
    assert min(naive["learning_accuracy"], ewc["learning_accuracy"]) > 0.65


DEFAULTS = [
    ("ewc", backbone, benchmark)
    for backbone in ("mlp", "cnn", "cnn_lamaml", "resnet18_thin", "resnet18")
    for benchmark in ("rotated_digits", "permuted_digits", "split_digits")
]
DEFAULTS += [("online_ewc", "cnn", "rotated_digits")]
DEFAULTS += [(a, "resnet18_thin", "rotated_digits") for a in ("online_ewc", "mas", "mcsgd")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("algo", "backbone", "benchmark"),
    [
        pytest.param(*case, marks=[] if case[1:2] == ("mlp",) else pytest.mark.full)
        for case in DEFAULTS
    ],
)
def test_defaults_learn(algo: str, backbone: str, benchmark: str, backend: str):
    """Every network learns each task, far above chance: 0.1, or 0.5 on Split Digits.

    Without clipping, the penalty made the loss NaN in task 2 (MAS), 3 (ResNets) or 5 (online EWC,
    CNN); with a larger `lmc_lr`, MC-SGD's w_bar was not finite.
    """
    found = scores(algo, backend, (0,), benchmark=benchmark, network=backbone)
    assert found["learning_accuracy"] > (0.7 if benchmark == "split_digits" else 0.4)
    assert found["average_accuracy"] > (0.7 if benchmark == "split_digits" else 0.2)


# A small version of the table in docs/algorithms, with its hyper-parameters, on digits.
DIGITS = {"backbone": {"width": 64}, "grad_clip": 1.0}
CLAIMS: dict[str, tuple[dict[str, Any], tuple[int, ...], float, float]] = {
    # options, seeds, minimum reduction of naive's forgetting, minimum gain in accuracy
    "ewc": ({"lr": 0.3, "ewc_lambda": 100.0}, (0,), 0.15, -0.05),
    "online_ewc": ({"lr": 0.3, "ewc_lambda": 100.0}, (0,), 0.15, -0.05),
    "si": ({"lr": 0.3, "si_lambda": 3.0}, (0,), 0.15, 0.0),
    "mas": ({"lr": 0.1, "mas_lambda": 0.3}, (0,), 0.15, 0.0),
    "lfl": ({"lr": 0.1, "lfl_lambda": 0.1}, (0, 1, 2), 0.05, -0.05),
    "agem": ({"lr": 0.1}, (0, 1, 2), 0.05, 0.04),
    "er": ({"lr": 0.3}, (0,), 0.15, 0.2),
    "der": ({"lr": 0.3, "alpha": 1.0}, (0,), 0.15, 0.2),
    "derpp": ({"lr": 0.3, "alpha": 0.3, "beta": 1.0}, (0,), 0.2, 0.25),
    "stable_sgd": (
        {"lr": 0.3, "gamma": 0.6, "dropout": 0.1, "momentum": None},
        (0, 1, 2),
        0.04,
        -0.05,
    ),
    "mcsgd": ({"lr": 0.3, "lmc_lr": 0.05, "lmc_epochs": 10}, (0,), 0.06, 0.05),
    "kcl": ({"lr": 0.1, "num_bases": 256}, (0,), 0.2, 0.2),
    "lamaml": ({"lr_alpha": 0.1, "glances": 1, "inner_chunk_size": 5}, (0,), 0.15, 0.1),
}


@cache
def naive_on_digits(seeds: tuple[int, ...]) -> dict[str, float]:
    """Return naive's metrics; over seeds 0-2 it forgets 0.37 and ends at an accuracy of 0.48."""
    return scores("naive", "torch", seeds, lr=0.1, **DIGITS)


@pytest.mark.ci
@pytest.mark.parametrize(
    "method",
    [pytest.param(a, marks=pytest.mark.full if a in ("kcl", "lamaml") else []) for a in CLAIMS],
)
def test_methods_forget_less_than_naive(method: str):
    """On Rotated Digits; about half of the measured difference is required."""
    keys, seeds, reduction, gain = CLAIMS[method]
    naive = naive_on_digits(seeds)
    found = scores(method, "torch", seeds, **DIGITS, **keys)
    assert found["average_forgetting"] < naive["average_forgetting"] - reduction
    assert found["average_accuracy"] > naive["average_accuracy"] + gain


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("er", {}),
        ("derpp", {"alpha": 0.3, "beta": 1.0}),
        ("icarl", {"lr": 0.5}),
        ("mcsgd", {"lmc_lr": 0.1, "lmc_epochs": 40}),
    ],
)
def test_replay_knows_old_classes(method: str, keys: dict[str, Any]):
    """On class-incremental Split Digits, where naive knows only the last task's classes (0.2)."""
    given = {"lr": 0.3, "benchmark": "split_digits", "stream": {"scenario": "class"}, **keys}
    found = scores(method, "torch", (0,), **DIGITS, **given)
    assert found["average_accuracy"] > 0.4

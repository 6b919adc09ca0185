"""Runs that share one program agree with the same runs alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
import pytest
from experiments import ALGORITHMS, algorithm_class, every_algorithm
from vectorized.members import SHORT, TOLERANCE, UNEVEN, assert_like_single, together, train

from seqrun.algorithms.ewc.jax import EWC
from seqrun.callbacks import EarlyStoppingCallback
from seqrun.training.divergence import TrainingDiverged
from seqrun.training.engine.vmap import jax as vmap_groups
from seqrun.training.engine.vmap.jax import VmapGroup
from seqrun.training.step import Step

BRIEF = ("naive", "ewc", "er", "agem")
algorithms = pytest.mark.parametrize(
    "algo", [a if a in BRIEF else pytest.param(a, marks=pytest.mark.full) for a in ALGORITHMS]
)
OTHER = {
    # a value besides the one in conf/
    "ewc_lambda": 100.0, "penalty_scale": 0.7, "gamma": 0.5, "si_lambda": 3.0, "xi": 0.01,
    "mas_lambda": 2.0, "alpha": 0.7, "lfl_lambda": 0.4, "factor": 1.0, "memory_weight": 0.3,
    "beta": 0.4, "lr_min": 0.025, "tau": 0.1, "lambda_init": 0.3, "lr_alpha": 0.3,
    "alpha_init": 0.05, "lmc_lr": 0.1, "lmc_momentum": 0.5, "lmc_init_position": 0.2,
    "lmc_current_weight": 0.5,
}  # fmt: skip
FIRST = {"memory_weight": 0.6, "lmc_momentum": 0.2}
SETTINGS: dict[str, dict[str, Any]] = {"mas": {"accumulate": "ema"}}
"""Settings without which an option has no effect."""
SMALL = {"n_hidden_layers": 1}
"""A small network, since half of the time of these tests is compilation."""


def assert_seeds(algo: str, specs: list[dict[str, Any]]) -> list[Any]:
    """Raise AssertionError unless runs share programs and agree with the same runs alone."""
    group = VmapGroup()
    traces = train(algo, specs, group)
    assert_like_single(algo, specs, traces, TOLERANCE)
    assert together(group) == 3
    assert all(group._same_function.values())
    assert {key[0][0] for key in group._programs} == {key[0] for key in group._same_function}
    return traces


@pytest.mark.ci
@algorithms
def test_seeds(algo: str):
    """Three seeds: losses, parameters, states, memory, matrix; one program for their chunks."""
    assert_seeds(algo, [{"seed": s, "stream": SHORT, "backbone": SMALL} for s in (0, 1, 2)])


@pytest.mark.ci
def test_equal_data_are_held_once(monkeypatch: pytest.MonkeyPatch):
    """Three runs have the same tasks, but each its own batch order."""
    put: list[tuple[int, ...]] = []
    original = jax.device_put

    def counted(array: Any, device: Any) -> Any:
        put.append(array.shape)
        return original(array, device)

    monkeypatch.setattr(vmap_groups, "SHARED_BYTES", 1)
    monkeypatch.setattr(vmap_groups.jax, "device_put", counted)
    same = {"stream": SHORT, "backbone": SMALL, "streams": {"tasks": 0}}
    specs = [same | {"seed": s} for s in (0, 1, 2)]
    traces = train("naive", specs)
    pools = [trace.algorithm.engine.dataset.x for trace in traces]
    assert all(pool is pools[0] for pool in pools)
    assert put.count((40, 8, 8, 1)) == 2, "one a task"
    assert_like_single("naive", specs, traces, TOLERANCE)


@pytest.mark.ci
@pytest.mark.full
@pytest.mark.parametrize("algo", ["er", "ewc", "derpp", "lamaml"])
def test_partial_batches(algo: str):
    assert_seeds(algo, [{"seed": seed, "stream": UNEVEN} for seed in (0, 1, 2)])


@pytest.mark.ci
@pytest.mark.full
@every_algorithm
def test_every_option_that_may_differ(algo: str):
    """Options one by one and all at once, with the optimizer's, reach programs as arguments."""
    names = algorithm_class(algo, "jax").vectorizable
    fixed = SETTINGS.get(algo, {}) | {n: v for n, v in FIRST.items() if n in names}
    variants: list[dict[str, Any]] = [{}, *({name: OTHER[name]} for name in names)]
    variants.append({name: OTHER[name] for name in names})
    # Decay has an effect by the third task; iCaRL's tasks share ten classes evenly.
    stream = SHORT | {"num_tasks": 5 if algo == "icarl" else 3}
    specs = [{"stream": stream, **fixed, **variant} for variant in variants]
    optimizers = [{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}] * len(specs)
    optimizers[-1] = {"lr": 0.03, "momentum": 0.5, "weight_decay": 0.02}
    clipping = [{"grad_clip": 2.0}] * len(specs)
    clipping[-1] = {"grad_clip": 0.5, "lr_decay": 1.0 if algo == "stable_sgd" else 0.8}
    for spec, options, training in zip(specs, optimizers, clipping, strict=True):
        spec |= {"optimizer_options": options, "training": training}
    group = VmapGroup()
    traces = train(algo, specs, group)
    assert all(group._same_function.values())
    assert together(group) == len(specs)
    assert_like_single(algo, specs, traces, TOLERANCE)
    network = ("params/", "kept/")
    results = {
        b"".join(a.tobytes() for n, a in trace.arrays.items() if n.startswith(network))
        for trace in traces
    }
    assert len(results) == len(specs), "an option of no effect proves nothing"


@pytest.mark.ci
@pytest.mark.full
@pytest.mark.parametrize("network", ["cnn", "resnet18_thin"])
def test_convolutions_and_adam(network: str):
    """One step a call on a CPU; BatchNorm's statistics."""
    stream = {"num_tasks": 1, "samples_per_task": 20, "pad_to": 32}
    specs = [
        {"stream": stream, "network": network, "optimizer": "adam", "seed": seed,
         "optimizer_options": {"lr": lr}, "training": {"epochs_per_task": 1}}
        for seed, lr in ((0, 1e-3), (1, 2e-3))
    ]  # fmt: skip
    group = VmapGroup()
    traces = train("naive", specs, group)
    assert together(group, "step") == 2
    assert_like_single("naive", specs, traces, 1e-3)


@pytest.mark.ci
@pytest.mark.full
def test_one_diverges():
    """Only this run fails, and the numbers of the others do not change."""
    specs = [{"stream": SHORT, "optimizer_options": {"lr": lr}} for lr in (0.05, 1e18, 0.1)]
    first, failed, last = train("naive", specs)
    assert isinstance(failed, TrainingDiverged)
    assert_like_single("naive", [specs[0], specs[2]], [first, last], TOLERANCE)


@pytest.mark.ci
@pytest.mark.full
def test_early_stopping_at_different_times():
    """Runs are at different tasks, leave at different times, and none waits for ever."""
    stream = SHORT | {"validation_fraction": 0.2, "num_tasks": 3}
    specs = [
        {"seed": seed, "stream": stream, "optimizer_options": {"lr": lr},
         "training": {"epochs_per_task": 12},
         "callbacks": [EarlyStoppingCallback(patience=1, restore_best=False)]}
        for seed, lr in ((0, 0.05), (1, 0.3), (2, 0.01), (3, 0.1))
    ]  # fmt: skip
    traces = train("naive", specs)
    assert len({len(trace.losses) for trace in traces}) > 1
    alone = [spec | {"callbacks": [EarlyStoppingCallback(patience=1, restore_best=False)]}
             for spec in specs]  # fmt: skip
    assert_like_single("naive", alone, traces, TOLERANCE)


@dataclass(kw_only=True, eq=False)
class Stale(EWC):
    """A method with the classic mistake: an option that is read while a program is traced."""

    def on_after_backward(self, step: Step) -> None:
        """Add a number that becomes a constant of the program."""
        step.gradients = {n: g + self.ewc_lambda for n, g in step.gradients.items()}


@pytest.mark.ci
@pytest.mark.full
def test_a_value_that_is_caught_is_not_used_for_others(capsys: pytest.CaptureFixture[str]):
    """The programs differ, so each run has its own, and a warning says so."""
    specs = [{"stream": SHORT, "kind": Stale, "ewc_lambda": v} for v in (0.1, 0.2)]
    group = VmapGroup()
    traces = train("ewc", specs, group)
    assert "chunk: differs from run to run" in capsys.readouterr().err
    assert together(group) == 1
    assert_like_single("ewc", specs, traces, 0.0)


@pytest.mark.ci
@every_algorithm
def test_options_are_arguments(algo: str):
    """Both backends declare the same keys, each of which is a field of the class."""
    kinds = [algorithm_class(algo, backend) for backend in ("torch", "jax")]
    assert kinds[0].vectorizable == kinds[1].vectorizable
    options = {field.name for field in fields(kinds[0])}
    assert set(kinds[0].vectorizable) <= options


@pytest.mark.ci
def test_constants_are_part_of_a_fingerprint():
    def program(values: np.ndarray) -> Any:
        return lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y + np.asarray(values), x)

    a, b, c = (
        vmap_groups._fingerprint(program(np.array(v)), (np.zeros(2),))
        for v in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0])
    )
    assert a == b != c

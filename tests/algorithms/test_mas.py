"""MAS: the sensitivity of the outputs by hand, and every option."""

from __future__ import annotations

import numpy as np
import pytest
from algorithms.penalty_by_hand import (
    BIAS,
    KERNEL,
    Arrays,
    TaskEnd,
    assert_as_by_hand,
    by_hand,
    close,
    tiny,
)
from algorithms.side_effects import assert_differs_from_naive, assert_reduces_to_naive, jax_in_full
from experiments import BACKENDS, build, component, every_backend, run, shared_run

from seqrun.algorithms.base import TrainingOptions
from seqrun.checks import ConfigError

SETTING = {"lr": 0.5}


def sensitivity(end: TaskEnd, size: int) -> Arrays:
    """Return (1/N) sum over batches of |d sum_n ||F(x_n)||^2 / d w|; d / d w is 2 x F^T and 2 F."""
    outputs = end.x @ end.w[KERNEL] + end.w[BIAS]
    kernel = 2 * end.x[:, :, None] * outputs[:, None, :]
    cuts = range(size, len(end.x), size)
    return {
        name: sum(abs(part.sum(0)) for part in np.split(g, cuts)) / len(end.x)
        for name, g in ((KERNEL, kernel), (BIAS, 2 * outputs))
    }


def rule(past: float, new: float, size: int = 1):
    """Return Omega <- past Omega + new Omega_t; of the first task Omega_t."""

    def importance(end: TaskEnd) -> Arrays:
        if not any(a.any() for a in end.past.values()):
            return sensitivity(end, size)
        return {n: past * end.past[n] + new * a for n, a in sensitivity(end, size).items()}

    return importance


@jax_in_full
@pytest.mark.parametrize(
    ("past", "new", "size", "options"),
    [
        (1.0, 1.0, 1, {}),
        (0.3, 0.7, 1, {"accumulate": "ema", "alpha": 0.3}),
        pytest.param(0.0, 1.0, 1, {"accumulate": "replace"}, marks=pytest.mark.full),
        (1.0, 1.0, 3, {"importance_batch_size": 3}),
        pytest.param(1.0, 1.0, 1, {"importance_batch_size": 1}, marks=pytest.mark.full),
    ],
    ids=["sum", "ema", "replace", "batches", "batches_of_one"],
)
def test_every_step_is_as_by_hand(backend: str, past: float, new: float, size: int, options: dict):
    """Losses, parameters, anchor and importance, over three tasks; 7 samples in batches of 3."""
    result = assert_as_by_hand(
        rule(past, new, size),
        0.2,
        "mas",
        backend,
        setting=SETTING,
        mas_lambda=0.2,
        clip=None,
        **options,
    )
    smallest = min(a.min() for a in result.importance[0].values())
    assert smallest >= 0 and result.importance[0][KERNEL].std() > 0


def test_the_cases_distinguish_batch_sizes():
    """By hand: gradients of opposite sign cancel within a batch, more so in larger batches."""
    single, three, seven = (
        by_hand(rule(1.0, 1.0, size), 0.2, **SETTING).importance[0][KERNEL].sum()
        for size in (1, 3, 7)
    )
    assert seven < three - 0.01 < single - 0.02


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("size", [3, 1000])
def test_evaluation_batches_change_nothing(backend: str, size: int):
    """All samples count, whatever the size of evaluation batches."""
    end = tiny("mas", backend, **SETTING, stream={"num_tasks": 1, "eval_batch_size": size})
    arrays = end.export_arrays()
    w = {n: arrays[f"params/{n}"] for n in (KERNEL, BIAS)}
    data = end.benchmark.task_data(1)
    task = TaskEnd(w, w, w, w, data.x.reshape(7, 2) / 255.0, data.y)
    close({n: arrays[f"state/importance/{n}"] for n in w}, sensitivity(task, 1))


@jax_in_full
def test_labels_are_not_used(backend: str):
    """With other labels the importance is the same."""
    algorithm = run("mas", backend, stream={"num_tasks": 1}).algorithm
    before = algorithm.calculate_parameter_importance()
    algorithm.engine.dataset = algorithm.engine.dataset._replace(y=algorithm.engine.dataset.y * 0)
    after = algorithm.calculate_parameter_importance()
    for name in before:
        np.testing.assert_array_equal(before[name].tolist(), after[name].tolist())


@jax_in_full
def test_only_outputs_of_the_softmax_count(backend: str):
    """In scenario "task" other heads have no importance, in "class" later classes have none."""
    for scenario in ("task", "class"):
        stream = {"scenario": scenario}
        steps = shared_run("mas", backend, benchmark="split_digits", stream=stream, stepped=True)
        second = steps.steps[len(steps.steps) // 5]["state/importance/classifier/bias"]
        assert (second[:2] > 0).all() and (second[2:] == 0).all()
        third = steps.steps[2 * len(steps.steps) // 5]["state/importance/classifier/bias"]
        assert (third[:4] > 0).all() and (third[4:] == 0).all()
        old_head = third[:2] - second[:2]
        assert (old_head == 0).all() if scenario == "task" else (old_head > 0).all()


@pytest.mark.ci
@jax_in_full
def test_reduces_to_naive(backend: str):
    """mas_lambda = 0 is naive, since importance has no side effects; another value is not."""
    assert_reduces_to_naive("mas", backend, mas_lambda=0.0, clip=None)
    assert_reduces_to_naive("mas", "torch", mas_lambda=0.0, clip=None, importance_batch_size=20)
    assert_differs_from_naive("mas", mas_lambda=1.0)


def test_which_numbers_changed():
    """Those of ema, which keeps the first task's importance whole, and wherever it clips."""
    for backend in BACKENDS:
        kind, keys = component("algo", "mas", backend)
        keys |= {"training": TrainingOptions()}
        sums = keys | {"clip": None}
        ema = sums | {"accumulate": "ema"}
        assert [kind.numerics(o) for o in (sums, ema, ema | {"alpha": 0.0})] == [1, 2, 1]
        assert kind.numerics(keys) == 2
        assert kind.numerics(keys | {"training": TrainingOptions(grad_clip=1.0)}) == 1


@pytest.mark.parametrize(
    "option",
    [
        {"accumulate": "ema"},
        {"accumulate": "replace"},
        {"importance_batch_size": 200},
        {"penalty_scale": 0.5},
        {"accumulate": "ema", "alpha": 0.9},
    ],
    ids=str,
)
def test_options_matter(option: dict):
    """A run with the option differs."""
    base = {"accumulate": "ema"} if "alpha" in option else {}
    shipped, changed = (shared_run("mas", "torch", **o) for o in (base, option))
    name = "params/hidden_0/kernel"
    assert abs(shipped.arrays[name] - changed.arrays[name]).max() > 1e-6


@every_backend
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"accumulate": "mean"}, r"accumulate='mean': must be one of sum, ema, replace"),
        ({"alpha": 1.0}, r"alpha=1.0: must be a number in \[0, 1\)"),
        ({"importance_batch_size": 0}, r"importance_batch_size=0: must be an integer >= 1"),
        ({"mas_lambda": -1}, r"mas_lambda=-1: must be a number >= 0"),
    ],
)
def test_refuses(backend: str, option: dict, message: str):
    """Values out of range."""
    with pytest.raises(ConfigError, match=message):
        build("mas", backend, **option)

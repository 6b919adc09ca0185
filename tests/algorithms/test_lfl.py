"""LFL: loss and gradient by hand, the frozen classifier, the frozen copy, and every option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from algorithms.side_effects import assert_differs_from_naive, assert_reduces_to_naive, jax_in_full
from experiments import StepRecorder, build, every_backend, run, shared_run
from tiny import softmax

from seqrun.checks import ConfigError
from seqrun.training.callback import Run

Arrays = dict[str, np.ndarray]
# Momentum and weight decay change a parameter whose gradient is 0.
MOVING = {
    "optimizer_options": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "training": {"epochs_per_task": 1, "reinit_optimizer": "never"},
}


@dataclass
class BatchRecorder(StepRecorder):
    """Record every step's batch and loss too.

    Attributes:
        batches: per step, inputs (B, 64), labels (B,) and the task loss.
        training: per step, whether the module was in train mode (PyTorch).
    """

    batches: list[tuple[np.ndarray, np.ndarray, float]] = field(default_factory=list)
    training: list[bool] = field(default_factory=list)

    def on_after_optimizer_step(self, run: Run, step: Any) -> None:
        """Record the step."""
        super().on_after_optimizer_step(run, step)
        x, y = np.asarray(step.batch.x), np.asarray(step.batch.y)
        self.batches.append((x.reshape(len(y), -1).astype(float), y, float(step.loss)))
        self.training.append(getattr(run.algorithm.module, "training", True))


def features(w: Arrays, x: np.ndarray) -> np.ndarray:
    """Return the inputs of the classifier of an MLP with one hidden layer."""
    return np.maximum(x @ w["hidden_0/kernel"] + w["hidden_0/bias"], 0)


def by_hand(w: Arrays, old: Arrays, x: np.ndarray, y: np.ndarray, weight: float, frozen: bool):
    """Return CE, and the gradient of CE + weight * mean over samples of |f - f_old|^2."""
    f = features(w, x)
    p = softmax(f @ w["classifier/kernel"] + w["classifier/bias"])
    delta = (p - np.eye(10)[y]) / len(y)
    back = delta @ w["classifier/kernel"].T + 2 * weight / len(y) * (f - features(old, x))
    back = back * (f > 0)
    gradient = {"hidden_0/kernel": x.T @ back, "hidden_0/bias": back.sum(0)}
    keep = 0.0 if frozen else 1.0
    gradient |= {"classifier/kernel": keep * f.T @ delta, "classifier/bias": keep * delta.sum(0)}
    return -np.log(p[np.arange(len(y)), y]).mean(), gradient


@jax_in_full
@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, 0.5 * 3.0),
        ({"factor": 1.0, "freeze_classifier": False}, 3.0),
        ({"reduction": "mean", "factor": 1.0}, 3.0 / 16),
    ],
    ids=["paper", "unfrozen", "mean"],
)
def test_every_gradient_is_as_by_hand(backend: str, options: dict, weight: float):
    """The old network is that at the end of the last task; the logged loss is CE."""
    recorder = BatchRecorder()
    spec = {"backbone": {"n_hidden_layers": 1}, "training": {"epochs_per_task": 1}}
    run("lfl", backend, callbacks=[recorder], lfl_lambda=3.0, **spec, **options)
    per_task = len(recorder.steps) // 3
    distances = []
    for number in range(1, len(recorder.steps)):
        x, y, loss = recorder.batches[number]
        w, old = (parameters(recorder.steps[n]) for n in (number - 1, start(number, per_task)))
        in_first = number < per_task
        frozen = not in_first and options.get("freeze_classifier", True)
        ce, gradient = by_hand(w, old, x, y, 0.0 if in_first else weight, frozen)
        np.testing.assert_allclose(loss, ce, rtol=1e-5)
        for name, value in gradient.items():
            actual = recorder.steps[number][f"gradients/{name}"]
            np.testing.assert_allclose(actual, value, atol=2e-6, err_msg=f"{number} {name}")
        distances.append(abs(features(w, x) - features(old, x)).max())
    assert max(distances[per_task:]) > 0.05


def start(number: int, per_task: int) -> int:
    """Return the last step before the task that a step belongs to."""
    return max(number // per_task * per_task - 1, 0)


def parameters(step: Arrays) -> Arrays:
    """Return the parameters of a recorded step, as float64."""
    params = {n: a for n, a in step.items() if n.startswith("params/")}
    return {n.removeprefix("params/"): a.astype(float) for n, a in params.items()}


@pytest.mark.ci
@every_backend
def test_a_shared_classifier_is_frozen_from_task_2(backend: str):
    """To the bit, although momentum and weight decay would change it; the encoder is trained."""
    steps = shared_run("lfl", backend, stepped=True, **MOVING).steps
    per_task = len(steps) // 3
    for leaf in ("kernel", "bias"):
        values = [step[f"params/classifier/{leaf}"] for step in steps]
        assert abs(values[0] - values[per_task - 1]).max() > 1e-3
        assert all((value == values[per_task - 1]).all() for value in values[per_task:])
    hidden = [step["params/hidden_1/kernel"] for step in steps]
    assert abs(hidden[per_task - 1] - hidden[-1]).max() > 1e-3


@jax_in_full
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_task_s_own_outputs_train(backend: str, scenario: str):
    """Outputs of tasks 1 to t - 1 stay the same, those of task t are trained."""
    spec = {"benchmark": "split_digits", "stream": {"scenario": scenario}, **MOVING}
    steps = shared_run("lfl", backend, stepped=True, **spec).steps
    per_task = len(steps) // 5
    for task in range(1, 5):
        before, after = (steps[n]["params/classifier/kernel"] for n in (task * per_task - 1, -1))
        np.testing.assert_array_equal(before[:, : 2 * task], after[:, : 2 * task])
        assert abs(before[:, 2 * task] - after[:, 2 * task]).max() > 1e-3


@jax_in_full
def test_frozen_outputs_take_no_part_in_clipping(backend: str):
    """The other gradients alone are clipped to the maximum norm."""
    spec = {"training": {"epochs_per_task": 1, "grad_clip": 0.05}}
    last = shared_run("lfl", backend, stepped=True, **spec).steps[-1]
    names = [n for n in last if n.startswith("gradients/")]
    assert not last["gradients/classifier/kernel"].any()
    norm = np.sqrt(sum((last[n].astype(float) ** 2).sum() for n in names))
    np.testing.assert_allclose(norm, 0.05, rtol=1e-4)


@jax_in_full
def test_the_copy_is_the_network_from_before_the_task(backend: str):
    """It keeps the parameters and statistics from then; the network itself is in train mode."""
    recorder = BatchRecorder()
    run("lfl", backend, callbacks=[recorder], backbone={"batch_norm": True})
    steps, per_task = recorder.steps, len(recorder.steps) // 3
    assert all(recorder.training)
    for number in range(per_task, len(steps)):
        before = steps[start(number, per_task)]
        for name, value in steps[number].items():
            if name.startswith(("state/params/", "state/stats/")):
                np.testing.assert_array_equal(value, before[name.removeprefix("state/")])
    moved = [step["stats/norm_0/mean"] for step in steps]
    assert all((a != b).any() for a, b in zip(moved, moved[1:], strict=False))


@pytest.mark.ci
@jax_in_full
def test_reduces_to_naive(backend: str):
    """lfl_lambda = 0 without freezing is naive; lambda or freezing alone differs from task 2 on."""
    assert_reduces_to_naive("lfl", backend, lfl_lambda=0.0, freeze_classifier=False)
    assert_differs_from_naive("lfl", lfl_lambda=1.0, freeze_classifier=False)
    assert_differs_from_naive("lfl", lfl_lambda=0.0)


@pytest.mark.parametrize(
    "option",
    [{"reduction": "mean"}, {"factor": 1.0}, {"freeze_classifier": False}, {"lfl_lambda": 1.0}],
    ids=str,
)
def test_options_matter(option: dict):
    """A run with the option differs."""
    shipped, changed = (shared_run("lfl", "torch", **o) for o in ({}, option))
    name = "params/hidden_0/kernel"
    assert abs(shipped.arrays[name] - changed.arrays[name]).max() > 1e-6


@every_backend
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lfl_lambda": -1.0}, r"lfl_lambda=-1.0: must be a number >= 0"),
        ({"reduction": "max"}, r"reduction='max': must be one of sum, mean"),
        ({"factor": 2.0}, r"factor=2.0: must be one of 0.5, 1.0"),
        ({"freeze_classifier": "yes"}, r"freeze_classifier='yes': must be true or false"),
    ],
)
def test_refuses(backend: str, option: dict, message: str):
    """Values out of range."""
    with pytest.raises(ConfigError, match=message):
        build("lfl", backend, **option)

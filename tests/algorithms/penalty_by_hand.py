"""Regularisation of a softmax regression, in NumPy and float64, and the same run with seqrun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from experiments import LossRecorder, StepRecorder, algorithm_class, component
from tiny import Linear, TinyBenchmark, sample_gradients

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.backbones import draw_initial_weights
from seqrun.plan import RandomStreams, batch_order

Arrays = dict[str, np.ndarray]
KERNEL, BIAS = "classifier/kernel", "classifier/bias"


@dataclass
class TaskEnd:
    """What the importance of a method may depend on.

    Attributes:
        w, start: parameters at the end and at the start of the task.
        path: minus the sum over steps of the task loss's gradient times the change of w.
        past: importance before the task.
        x, y: the task's inputs (N, 2) and labels (N,).
    """

    w: Arrays
    start: Arrays
    path: Arrays
    past: Arrays
    x: np.ndarray
    y: np.ndarray


@dataclass
class Result:
    """The results of a run.

    Attributes:
        losses: task loss of every step.
        steps, paths: parameters and path after every step.
        importance: after every task.
    """

    losses: list[float] = field(default_factory=list)
    steps: list[Arrays] = field(default_factory=list)
    paths: list[Arrays] = field(default_factory=list)
    importance: list[Arrays] = field(default_factory=list)


def by_hand(
    rule: Callable[[TaskEnd], Arrays],
    coefficient: float,
    *,
    lr: float,
    momentum: float = 0.0,
    grad_clip: float = np.inf,
    epochs: int = 2,
) -> Result:
    """Train on CE + coefficient * sum_i Omega_i (w_i - a_i)^2, with a the last task's solution."""
    streams, benchmark = RandomStreams(0), TinyBenchmark()
    benchmark.prepare(streams)
    drawn = draw_initial_weights({KERNEL: (2, 3), BIAS: (3,)}, "torch_default", streams)
    w = {n: a.astype(float) for n, a in drawn.items()}
    anchor, omega = w, {n: np.zeros_like(a) for n, a in w.items()}
    result = Result()
    for task in (1, 2, 3):
        data = benchmark.task_data(task)
        x, y = data.x.reshape(len(data.y), -1) / 255.0, data.y
        path, velocity = ({n: np.zeros_like(a) for n, a in w.items()} for _ in range(2))
        for epoch in range(1, epochs + 1):
            for part in batch_order(streams, task, epoch, len(y), 3):
                for rows in part:
                    g = {n: a.mean(0) for n, a in gradients(w, x[rows], y[rows]).items()}
                    penalty = {n: 2 * coefficient * omega[n] * (w[n] - anchor[n]) for n in w}
                    total = {n: g[n] + penalty[n] for n in w}
                    norm = np.sqrt(sum((a**2).sum() for a in total.values()))
                    scale = min(1.0, grad_clip / (norm + 1e-6))
                    velocity = {n: momentum * velocity[n] + scale * total[n] for n in w}
                    after = {n: w[n] - lr * velocity[n] for n in w}
                    path = {n: path[n] - g[n] * (after[n] - w[n]) for n in w}
                    result.losses.append(loss(w, x[rows], y[rows]))
                    w = after
                    result.steps.append(w)
                    result.paths.append(path)
        omega, anchor = rule(TaskEnd(w, anchor, path, omega, x, y)), w
        result.importance.append(omega)
    return result


def gradients(w: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """Return per-sample gradients of the cross-entropy."""
    return sample_gradients(w[KERNEL], w[BIAS], x, y)


def loss(w: Arrays, x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean cross-entropy."""
    logits = x @ w[KERNEL] + w[BIAS]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]))


def tiny(
    algo: str,
    backend: str,
    *callbacks: Any,
    lr: float,
    momentum: float = 0.0,
    grad_clip: float | None = None,
    epochs: int = 2,
    stream: dict[str, Any] | None = None,
    **options: Any,
) -> BaseAlgorithm:
    """Run an algorithm of seqrun on the same problem."""
    make_optimizer, keys = component("optimizer", "sgd", backend)
    keys |= {"lr": lr, "momentum": momentum}
    algorithm = algorithm_class(algo, backend)(
        benchmark=TinyBenchmark(**stream or {}),
        backbone=Linear(backend=backend),
        optimizer=make_optimizer(**keys),
        training=TrainingOptions(epochs_per_task=epochs, grad_clip=grad_clip),
        callbacks=list(callbacks),
        device="cpu",
        **options,
    )
    algorithm.fit()
    return algorithm


def assert_as_by_hand(
    rule: Callable[[TaskEnd], Arrays],
    coefficient: float,
    algo: str,
    backend: str,
    *,
    setting: dict[str, Any],
    **options: Any,
) -> Result:
    """Raise AssertionError unless every loss, parameter and importance agrees with `by_hand`."""
    expected = by_hand(rule, coefficient, **setting)
    losses, steps = LossRecorder(), StepRecorder()
    tiny(algo, backend, losses, steps, **setting, **options)
    np.testing.assert_allclose(np.concatenate(losses.losses), expected.losses, rtol=2e-5)
    assert len(steps.steps) == len(expected.steps)
    for actual, w, path in zip(steps.steps, expected.steps, expected.paths, strict=True):
        close({n: actual[f"params/{n}"] for n in w}, w)
        if f"state/path/{KERNEL}" in actual:
            close({n: actual[f"state/path/{n}"] for n in w}, path)
    # Without callbacks JAX runs compiled chunks, which must not use values of an earlier task.
    alone = tiny(algo, backend, **setting, **options).export_arrays()
    close({n: alone[f"params/{n}"] for n in (KERNEL, BIAS)}, expected.steps[-1])
    close({n: alone[f"state/importance/{n}"] for n in (KERNEL, BIAS)}, expected.importance[-1])
    close({n: alone[f"state/anchor/{n}"] for n in (KERNEL, BIAS)}, expected.steps[-1])
    per_task = len(expected.steps) // 3
    for task in (1, 2):
        state = steps.steps[task * per_task]  # the first step of the next task
        close({n: state[f"state/importance/{n}"] for n in w}, expected.importance[task - 1])
        close({n: state[f"state/anchor/{n}"] for n in w}, expected.steps[task * per_task - 1])
    return expected


def close(actual: Arrays, desired: Arrays, tolerance: float = 2e-5) -> None:
    """Raise AssertionError unless float32 `actual` equals `desired` up to rounding."""
    for name, value in desired.items():
        largest = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(actual[name], value, atol=tolerance * largest, err_msg=name)

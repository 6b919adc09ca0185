"""EWC of a softmax regression in NumPy, float64, with one explicit penalty per past task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tiny import TinyBenchmark, sample_gradients, softmax

from seqrun.backbones import draw_initial_weights
from seqrun.plan import RandomStreams, batch_order

Arrays = dict[str, np.ndarray]
KERNEL, BIAS = "classifier/kernel", "classifier/bias"


@dataclass
class Result:
    """The results of a run.

    Attributes:
        steps: parameters after every step.
        fishers, solutions: Fisher, and parameters at the end, of each task.
    """

    steps: list[Arrays]
    fishers: list[Arrays]
    solutions: list[Arrays]


def ewc_by_hand(
    *,
    lr: float,
    ewc_lambda: float,
    epochs: int,
    seed: int = 0,
    penalty_scale: float = 0.5,
    fisher: str = "empirical",
    fisher_weight: str = "none",
    fisher_running: bool = False,
    fisher_running_every: int = 10,
    fisher_samples: int | None = None,
    fisher_batch_size: int = 3,
) -> Result:
    """Train by SGD on the cross-entropy plus sum over past tasks k of lambda s F_k (w - w_k)^2."""
    streams, benchmark = RandomStreams(seed), TinyBenchmark()
    benchmark.prepare(streams)
    shapes = {KERNEL: (2, 3), BIAS: (3,)}
    drawn = draw_initial_weights(shapes, "torch_default", streams)
    w = {n: a.astype(float) for n, a in drawn.items()}
    result = Result([], [], [])
    running = {n: np.zeros_like(a) for n, a in w.items()}
    for task in (1, 2, 3):
        data = benchmark.task_data(task)
        x, y = data.x.reshape(len(data.y), -1) / 255.0, data.y
        squared_batches: list[Arrays] = []
        for epoch in range(1, epochs + 1):
            for part in batch_order(streams, task, epoch, len(y), 3):
                for rows in part:
                    g = mean_gradient(w, x[rows], y[rows])
                    squared_batches.append({n: a**2 for n, a in g.items()})
                    # with the running Fisher only the latest task's penalty is kept
                    kept = slice(-1, None) if fisher_running else slice(None)
                    past = zip(result.fishers[kept], result.solutions[kept], strict=True)
                    for omega, anchor in past:
                        for n in g:
                            difference = omega[n] * (w[n] - anchor[n])
                            g[n] = g[n] + 2 * ewc_lambda * penalty_scale * difference
                    w = {n: w[n] - lr * g[n] for n in w}
                    result.steps.append(w)
        if fisher_running:
            running = running_fisher(running, squared_batches, fisher_running_every)
            result.fishers.append(unit_scaled(running))
        else:
            rows, draws = np.arange(len(y)), streams.generator("noise", task)
            if fisher_samples is not None:
                rng = streams.generator("memory", task)
                rows = np.sort(rng.choice(len(y), fisher_samples, replace=False))
            uniform = draws.random(len(rows), dtype=np.float32)
            chosen = (w, x[rows], y[rows])
            options = fisher, fisher_weight, uniform, fisher_batch_size
            result.fishers.append(fisher_of(*chosen, *options))
        result.solutions.append(w)
    return result


def mean_gradient(w: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """Return the gradient of the mean cross-entropy."""
    return {n: g.mean(0) for n, g in sample_gradients(w[KERNEL], w[BIAS], x, y).items()}


def fisher_of(
    w: Arrays,
    x: np.ndarray,
    y: np.ndarray,
    fisher: str,
    weight: str,
    uniform: np.ndarray,
    batch_size: int,
) -> Arrays:
    """Return mean_n w_n (d log p(y_n | x_n) / d w)^2 with the labels that `fisher` names."""
    p = softmax(x @ w[KERNEL] + w[BIAS])
    if fisher == "batched":
        batches = [slice(i, i + batch_size) for i in range(0, len(y), batch_size)]
        squares = [{n: g**2 for n, g in mean_gradient(w, x[b], y[b]).items()} for b in batches]
        return {n: np.mean([s[n] for s in squares], 0) for n in w}
    if fisher == "exact":
        every = [(np.full(len(y), c), p[:, c]) for c in range(3)]
    else:
        if fisher == "pred":
            y = p.argmax(1)
        elif fisher == "sample":
            pairs = zip(p, uniform, strict=True)
            y = np.array([np.searchsorted(row.cumsum(), u) for row, u in pairs])
        every = [(y, p[np.arange(len(y)), y] if weight == "p" else np.ones(len(y)))]
    total = {n: np.zeros_like(a) for n, a in w.items()}
    for labels, weights in every:
        for n, g in sample_gradients(w[KERNEL], w[BIAS], x, labels).items():
            total[n] += np.tensordot(weights, g**2, 1) / len(y)
    return total


def running_fisher(f: Arrays, squared_batches: list[Arrays], every: int) -> Arrays:
    """Return F <- 0.1 F + 0.9 (mean of `every` squared batch gradients), of a task's batches."""
    for start in range(0, len(squared_batches) - every + 1, every) or [0]:
        some = squared_batches[start : start + every]
        f = {n: 0.1 * f[n] + 0.9 * np.mean([s[n] for s in some], 0) for n in f}
    return f


def unit_scaled(f: Arrays) -> Arrays:
    """Return F, scaled to [0, 1] over all parameters."""
    values = np.concatenate([a.ravel() for a in f.values()])
    low, high = values.min(), values.max()
    return {n: (a - low) / (high - low) for n, a in f.items()}

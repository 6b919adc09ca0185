"""Inputs of MC-SGD's minimisation, in NumPy: points of the lines, samples and their weights.

All variants of the loss and of its gradient differ in weights only, so the twins implement one
formula: the gradient is sum_k c_k sum_i w_i grad CE_i at point k, over both sets of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seqrun.benchmarks import Dataset

GRADIENTS = ("paper", "unscaled", "authors")
LOSSES = ("mean", "authors")

Weighted = tuple[np.ndarray, np.ndarray]
"""Rows of a set of samples, and the weight of each one's cross-entropy."""


class Line(NamedTuple):
    """Points on a line from one of its ends to the weights w.

    Attributes:
        positions: (n+1,) float32, a_k = k/n.
        coefficients: (n+1,) float32, weight c_k of the gradient at point k.
    """

    positions: np.ndarray
    coefficients: np.ndarray


class Side(NamedTuple):
    """The samples of one of the two lines, and their weights in each step of the minimisation.

    Attributes:
        x: (N, H, W, C) uint8.
        y, t: (N,) int32.
        rows: (S, M, R) int32, each step's samples, in M segments that fit into a forward pass.
        weights: (S, M, R) float32, weight of each one's cross-entropy; 0 = padding.
        segments: int32 scalar, number of segments that are not empty, which come first.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    segments: np.ndarray


def line_points(gradient: str, samples: int) -> Line:
    """Return the points k/n, k = 0..n, and each one's coefficient.

    Args:
        gradient: "paper": the chain rule's a_k = k/n; "unscaled": 1; "authors": n + 1 - k, since
            at each point their code adds the gradients of all points so far.
        samples: n >= 1.
    """
    k = np.arange(samples + 1)
    coefficients = {"paper": k / samples, "unscaled": np.ones(len(k)), "authors": samples + 1 - k}
    return Line((k / samples).astype(np.float32), coefficients[gradient].astype(np.float32))


def all_samples(count: int, batch_size: int, loss: str) -> Weighted:
    """Return all `count` samples, weighted for the mean CE or for the authors' loss.

    The latter is the sum of the mean CEs of minibatches, divided by the number of samples.
    """
    rows = np.arange(count)
    if loss == "mean":
        return rows, np.full(count, 1 / count)
    sizes = np.minimum(batch_size, count - rows // batch_size * batch_size)
    return rows, 1 / (sizes * count)


def minibatch(rows: np.ndarray, count: int, loss: str) -> Weighted:
    """Return `rows`, weighted for their mean CE, which the authors' loss divides by `count`."""
    return rows, np.full(len(rows), 1 / (len(rows) * (1 if loss == "mean" else count)))


def minibatches(
    num_memory: int,
    num_current: int,
    batch_size: int,
    epochs: int,
    loss: str,
    generator: np.random.Generator,
) -> tuple[list[Weighted], list[Weighted]]:
    """Return each step's memory and current samples.

    An epoch is a pass over the current samples in a new order. Each of its batches is paired with a
    batch from memory, drawn without replacement.
    """
    memory, current = [], []
    for _ in range(epochs):
        order = generator.permutation(num_current)
        for rows in np.split(order, range(batch_size, num_current, batch_size)):
            size = min(batch_size, num_memory)
            drawn = generator.choice(num_memory, size, replace=False)
            memory.append(minibatch(drawn, num_memory, loss))
            current.append(minibatch(rows, num_current, loss))
    return memory, current


def side(
    data: Dataset,
    steps: Sequence[Weighted],
    *,
    capacity: int,
    step_capacity: int,
    segment_size: int,
) -> Side:
    """Pack samples and each step's rows and weights into arrays of fixed shapes.

    Args:
        data: the samples.
        steps: rows and weights of each step.
        capacity: size of the arrays of samples, >= that of `data`.
        step_capacity: size of a step's arrays, >= the number of rows of every step.
        segment_size: maximum number of samples in a forward pass, >= 1.
    """
    size = min(segment_size, step_capacity)
    shape = (len(steps), -(-step_capacity // size), size)
    rows, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for s, (chosen, weight) in enumerate(steps):
        rows[s].flat[: len(chosen)] = chosen
        weights[s].flat[: len(chosen)] = weight
    longest = max(len(chosen) for chosen, _ in steps)
    x, y, t = (np.pad(a, [(0, capacity - len(a)), *[(0, 0)] * (a.ndim - 1)]) for a in data)
    return Side(x, y, t, rows, weights, np.asarray(-(-longest // size), np.int32))

"""Policies: which samples of a task are stored at the end of the task.

Each policy returns rows of a task by priority: a smaller memory is a prefix of a larger one.
"""

from __future__ import annotations

import numpy as np

POLICIES = ("reservoir", "ring", "class_balanced", "random", "herding")
"""reservoir: every sample of the stream with the same probability, written during training;
ring: the last samples of each class in the last epoch's order; class_balanced: equally many of each
class, at random; random: at random; herding: samples whose mean feature follows the class mean."""


def random_rows(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all rows in random order."""
    return generator.permutation(len(y))


def class_balanced_rows(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all rows in random order, such that every prefix has equally many of each class."""
    return interleaved(generator.permutation(len(y)), y)


def ring_rows(y: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the rows of `order` from the last to the first, with the classes interleaved."""
    return interleaved(order[::-1], y)


def herding_rows(y: np.ndarray, features: np.ndarray, most: int) -> np.ndarray:
    """Return up to `most` rows of each class in herding order, classes interleaved.

    Args:
        y: (N,) labels.
        features: (N, D) float.
        most: rows per class at most, >= 1.
    """
    chosen = []
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        chosen.append(rows[herding_order(features[rows], most)])
    return interleaved(np.concatenate(chosen), y)


def herding_order(features: np.ndarray, most: int) -> np.ndarray:
    """Return the first `most` samples of one class in the order in which herding chooses them.

    Each choice brings the mean of the chosen samples closest to the mean of all, on L2-normalised
    features (Rebuffi 2017, algorithm 4). float32 distances select the candidates, which are then
    compared in float64.

    Args:
        features: (N, D) float.
        most: samples to choose; at most N are.
    """
    normal = np.asarray(features, np.float64)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    mean = normal.mean(0)
    squares = (normal**2).sum(1)
    rough, rough_squares = normal.astype(np.float32), squares.astype(np.float32)
    unit = (normal.shape[1] + 4) * float(np.finfo(np.float32).eps)  # bounds the float32 error
    total = np.zeros_like(mean)
    order = np.empty(min(most, len(normal)), np.int64)
    for k in range(1, len(order) + 1):
        # |mean - (total + f) / k|^2 k^2, without the terms that do not depend on f
        away = total - k * mean
        distances = rough_squares + rough @ (2 * away).astype(np.float32)
        margin = 4 * unit * (1 + float(np.linalg.norm(away)))
        near = np.flatnonzero(~(distances > distances.min() + margin))  # all if there is a NaN
        best = near[(squares[near] + 2 * normal[near] @ away).argmin()]
        order[k - 1] = best
        total += normal[best]
        rough_squares[best] = np.inf
    return order


def interleaved(rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the first row of each class, then the second of each, ..., in the order of `rows`."""
    return rows[np.argsort(rank_in_group(y[rows]), kind="stable")]


def rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Return how many entries of the same group precede each entry.

    Args:
        groups: (N,) integers.
    """
    order = np.argsort(groups, kind="stable")
    gathered = groups[order]
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.searchsorted(gathered, gathered)
    return ranks

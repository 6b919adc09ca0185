"""Policies: which samples of a task are stored at the end of the task.

Each policy returns the task's rows in order of priority, so a smaller memory is a prefix of a
larger one.
"""

from __future__ import annotations

import numpy as np

POLICIES = ("reservoir", "ring", "class_balanced", "random", "herding")
"""reservoir: every sample of the stream with the same probability, written during training;
ring: the last samples of each class in the order of the last epoch; class_balanced: the same number
of each class, at random; random: at random; herding: samples whose mean feature approximates the
class mean."""


def random_rows(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all rows in random order."""
    return generator.permutation(len(y))


def class_balanced_rows(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all rows in random order, such that every prefix is balanced over the classes."""
    return interleaved(generator.permutation(len(y)), y)


def ring_rows(y: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the rows of `order` from the last to the first, with the classes interleaved."""
    return interleaved(order[::-1], y)


def herding_rows(y: np.ndarray, features: np.ndarray, limit: int) -> np.ndarray:
    """Return up to `limit` rows of each class in herding order, with the classes interleaved.

    Args:
        y: (N,) labels.
        features: (N, D) float.
        limit: maximum number of rows per class, >= 1.
    """
    chosen = []
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        chosen.append(rows[herding_order(features[rows], limit)])
    return interleaved(np.concatenate(chosen), y)


def herding_order(features: np.ndarray, limit: int) -> np.ndarray:
    """Return the first `limit` samples of one class in the order in which herding chooses them.

    Each choice brings the mean of the chosen samples closest to the mean of all, on L2-normalised
    features (Rebuffi 2017, algorithm 4). Candidates are selected by float32 distances and then
    compared in float64.

    Args:
        features: (N, D) float.
        limit: number of samples to choose; all N if it is larger.
    """
    normed = np.asarray(features, np.float64)
    normed = normed / np.maximum(np.linalg.norm(normed, axis=1, keepdims=True), 1e-12)
    mean = normed.mean(0)
    squares = (normed**2).sum(1)
    normed32, squares32 = normed.astype(np.float32), squares.astype(np.float32)
    bound = (normed.shape[1] + 4) * float(np.finfo(np.float32).eps)  # of the float32 error
    total = np.zeros_like(mean)
    order = np.empty(min(limit, len(normed)), np.int64)
    for k in range(1, len(order) + 1):
        # |mean - (total + f) / k|^2 k^2, without the terms that do not depend on f
        offset = total - k * mean
        distances = squares32 + normed32 @ (2 * offset).astype(np.float32)
        margin = 4 * bound * (1 + float(np.linalg.norm(offset)))
        near = np.flatnonzero(~(distances > distances.min() + margin))  # all if there is a NaN
        best = near[(squares[near] + 2 * normed[near] @ offset).argmin()]
        order[k - 1] = best
        total += normed[best]
        squares32[best] = np.inf
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
    grouped = groups[order]
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.searchsorted(grouped, grouped)
    return ranks

"""Which samples of a task a memory keeps at the task's end.

Each policy returns rows of a task in the order of their worth: a shorter memory is a prefix.
"""

from __future__ import annotations

import numpy as np

POLICIES = ("reservoir", "ring", "class_balanced", "random", "herding")
"""reservoir: every sample of the stream with the same probability, written during training;
ring: the last ones of each class, in the order of the stream; class_balanced: as many of each
class, at random; random: at random; herding: those whose mean feature follows the class mean."""


def random_rows(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all rows in random order."""
    return generator.permutation(len(y))


def class_balanced_rows(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all rows so that every prefix holds as many of each class as there are."""
    shuffled = generator.permutation(len(y))
    return interleaved([shuffled[y[shuffled] == c] for c in np.unique(y)])


def ring_rows(y: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return rows by class, those seen last in `order` first, classes interleaved."""
    latest = order[::-1]
    return interleaved([latest[y[latest] == c] for c in np.unique(y)])


def herding_rows(y: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return rows by class in herding order, classes interleaved (Rebuffi 2017, algorithm 4).

    Each next exemplar brings the mean of the chosen closest to the class mean, on L2-normalised
    features.

    Args:
        y: (N,) labels.
        features: (N, D) float.
    """
    chosen = []
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        chosen.append(rows[herding_order(features[rows])])
    return interleaved(chosen)


def herding_order(features: np.ndarray) -> np.ndarray:
    """Return the herding order of one class's samples from their (N, D) features."""
    normal = np.asarray(features, np.float64)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    mean = normal.mean(0)
    left = np.ones(len(normal), bool)
    total = np.zeros_like(mean)
    order = np.empty(len(normal), np.int64)
    # |mean - (total + f)/k|^2 without the terms that do not depend on f, times k^2
    squares = (normal**2).sum(1)
    for k in range(1, len(normal) + 1):
        scores = squares + 2 * normal @ (total - k * mean)
        scores[~left] = np.inf
        best = int(scores.argmin())
        order[k - 1], left[best] = best, False
        total += normal[best]
    return order


def interleaved(groups: list[np.ndarray]) -> np.ndarray:
    """Return the first of each group, then the second of each, and so on."""
    rank = np.concatenate([np.arange(len(g)) for g in groups])
    return np.concatenate(groups)[np.argsort(rank, kind="stable")]

"""Class means from the features of exemplars."""

from __future__ import annotations

import numpy as np


def class_means(
    features: np.ndarray, y: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return each class's mean of normalised features, normalised again.

    Args:
        features: (N, D) float; they are converted to float64.
        y: (N,) labels.
        num_classes: C.

    Returns:
        (C, D) float32 means of length 1, 0 for a class without samples; and (C,) bool, the classes
        that have samples.
    """
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, y, normalised(features.astype(np.float64)))
    return normalised(sums).astype(np.float32), np.isin(np.arange(num_classes), y)


def normalised(rows: np.ndarray) -> np.ndarray:
    """Return the rows scaled to length 1; a row of zeros stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

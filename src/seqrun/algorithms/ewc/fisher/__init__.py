"""The samples and random numbers of a Fisher estimate, which are the same on both backends."""

from __future__ import annotations

import numpy as np

from seqrun.algorithms.ewc import EWCOptions


def fisher_rows(algorithm: EWCOptions, num_samples: int) -> np.ndarray:
    """Return the int32 rows of the replay dataset over which this task's estimate averages."""
    wanted = algorithm.fisher_samples
    if wanted is None or wanted >= num_samples:
        return np.arange(num_samples, dtype=np.int32)
    generator = algorithm.random.generator("memory", algorithm.task)
    return np.sort(generator.choice(num_samples, wanted, replace=False)).astype(np.int32)


def label_draws(algorithm: EWCOptions, count: int) -> np.ndarray:
    """Return one uniform float32 in [0, 1) per row, to draw labels from the model's p(y|x)."""
    return algorithm.random.generator("noise", algorithm.task).random(count, dtype=np.float32)

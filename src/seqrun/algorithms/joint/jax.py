"""Joint on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.joint import JointOptions
from seqrun.benchmarks import Dataset


@dataclass(kw_only=True, eq=False)
class Joint(JointOptions, JaxBaseAlgorithm):
    """Train on the data of the tasks so far, or of all tasks: the upper reference."""

    def make_replay_dataset(self, data: Dataset) -> Dataset:
        """Pad the data to the size of the whole stream, so that all tasks share one program."""
        padding = self.training_size(self.num_tasks) - len(data.y)
        return Dataset(*(np.pad(a, [(0, padding), *[(0, 0)] * (a.ndim - 1)]) for a in data))

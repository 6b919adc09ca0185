"""A recorder of what a run exports at the start and end of every task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from experiments import build

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.callbacks import BaseCallback
from seqrun.training.callback import Run
from seqrun.training.trainer import Trainer

Arrays = dict[str, np.ndarray]


@dataclass
class TaskRecorder(BaseCallback):
    """Record the exported arrays before and after each task, and its hparams-parameters.

    Attributes:
        starts: exported arrays before the first epoch of each task.
        ends: exported arrays after each task.
        hparams: scalars of the steps of each task.
        seen: rows of the replay dataset that each task's steps read, in order.
    """

    starts: list[Arrays] = field(default_factory=list)
    ends: list[Arrays] = field(default_factory=list)
    hparams: list[dict[str, float]] = field(default_factory=list)
    seen: list[np.ndarray] = field(default_factory=list)

    def on_before_epoch(self, run: Run) -> None:
        """Record the start of a task."""
        if run.epoch == 1:
            self.starts.append(_copy(run.algorithm))
            self.hparams.append(run.algorithm.hparams())
            self.seen.append(np.empty(0, int))

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        """Record the rows that were read."""
        self.seen[-1] = np.append(self.seen[-1], chunk.arrays["index"].ravel())

    def on_after_task(self, run: Run) -> None:
        """Record the end of the task."""
        self.ends.append(_copy(run.algorithm))


def _copy(algorithm: BaseAlgorithm) -> Arrays:
    return {name: np.array(a) for name, a in algorithm.export_arrays().items()}


def part(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays whose names start with `prefix`, without it."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def imported(algo: str, backend: str, arrays: Arrays, **spec: Any) -> Arrays:
    """Return what a new algorithm exports after it has imported `arrays`."""
    algorithm = build(algo, backend, **spec)
    Trainer(algorithm).setup()
    algorithm.import_arrays(arrays)
    return algorithm.export_arrays()

"""Progress: the position of a run and its measurements, as one dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

MATRICES = ("accuracy_matrix", "accuracy_matrix_task_aware")
PHASES = ("setup_seconds", "compile_seconds", "train_seconds", "eval_seconds")


@dataclass(kw_only=True, eq=False)
class Progress:
    """The counters and measurements of a run, stored in its record and in its checkpoints.

    Attributes:
        task: the task (1-based) in training, or the last one; 0 = before the first.
        epoch: the epoch (1-based) of that task.
        task_is_done: whether that task has been trained on and evaluated.
        global_step: training steps done.
        epoch_first_step: `global_step` when the epoch began.
        epoch_loss_sum, epoch_samples: sums over the epoch so far, for its mean loss.
        samples_seen, gradient_steps: what the run has cost so far.
        memory_bytes: size of the algorithm's memory.
        task_losses: mean task loss of the last epoch of each task done.
        final_loss: task loss of the last step; None before the first.
        timing: phase -> seconds.
        accuracy_matrix: (T+1, T) float64, fractions in [0, 1]; row 0 is the untrained model; NaN =
            not measured.
        accuracy_matrix_task_aware: the same with the task given at test; None unless the stream is
            class-incremental.
    """

    task: int = 0
    epoch: int = 0
    task_is_done: bool = False
    global_step: int = 0
    epoch_first_step: int = 0
    epoch_loss_sum: float = 0.0
    epoch_samples: float = 0.0
    samples_seen: int = 0
    gradient_steps: int = 0
    memory_bytes: int = 0
    task_losses: list[float] = field(default_factory=list)
    final_loss: float | None = None
    timing: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    accuracy_matrix: np.ndarray
    accuracy_matrix_task_aware: np.ndarray | None = None

    @classmethod
    def start(cls, num_tasks: int, *, task_aware: bool) -> Progress:
        """Return the progress of a run that has not begun.

        Args:
            num_tasks: length of the stream.
            task_aware: whether accuracies are also measured with the task given at test.
        """
        shape = (num_tasks + 1, num_tasks)
        aware = np.full(shape, np.nan) if task_aware else None
        return cls(accuracy_matrix=np.full(shape, np.nan), accuracy_matrix_task_aware=aware)

    @property
    def counters(self) -> dict[str, Any]:
        """Everything but the matrices, as plain data."""
        return {name: getattr(self, name) for name in COUNTERS}

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        """The accuracy matrices by name."""
        named = {name: getattr(self, name) for name in MATRICES}
        return {name: matrix for name, matrix in named.items() if matrix is not None}

    @classmethod
    def restored(cls, counters: Mapping[str, Any], matrices: Mapping[str, np.ndarray]) -> Progress:
        """Return a Progress with these `counters` and `matrices`."""
        copies: dict[str, Any] = {name: matrix.copy() for name, matrix in matrices.items()}
        return cls(**counters, **copies)

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add to the time that a phase took."""
        self.timing[phase] = self.timing.get(phase, 0.0) + seconds


COUNTERS = tuple(f.name for f in fields(Progress) if f.name not in MATRICES)
"""Fields of Progress that are not matrices."""

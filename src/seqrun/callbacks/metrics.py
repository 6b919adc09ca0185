"""MetricCallback: logs losses, accuracies and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqrun.benchmarks.base import evaluation_sizes
from seqrun.evaluation.metrics import run_metrics
from seqrun.plan import Chunk
from seqrun.records.checkpoint_checks import check_keys, check_number, check_whole
from seqrun.training.callback import BaseCallback, Run
from seqrun.training.schedules import LR_FACTOR


@dataclass(kw_only=True, eq=False)
class MetricCallback(BaseCallback):
    """Log losses, accuracies and the metrics of the accuracy matrix.

    - After each training step: "loss", the task loss, and with a schedule "lr".
    - After each epoch: "train_loss" and "train_accuracy", means over the epoch's samples. Each
      sample is measured in the forward pass of its own step, before the update.
    - After each validation: "accuracy/task_<j>" of every task measured, the metrics of the stream
      so far, and the matrix.
    - At the end: the metrics of the whole stream.

    Accuracies with the task given at test time are logged as "accuracy_task_aware/task_<j>", and
    their metrics as "<metric>_task_aware".
    """

    _loss_sum: float = field(default=0.0, init=False, repr=False)
    _correct: int = field(default=0, init=False, repr=False)
    _samples: int = field(default=0, init=False, repr=False)
    _test_sizes: list[int] = field(default_factory=list, init=False, repr=False)

    def export_state(self, run: Run) -> dict[str, Any]:
        return {"loss_sum": self._loss_sum, "correct": self._correct, "samples": self._samples}

    def check_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `state` has sums over at most the samples seen."""
        check_keys(state, ("loss_sum", "correct", "samples"))
        check_number("loss_sum", state["loss_sum"])
        check_whole("samples", state["samples"], run.progress.samples_seen)
        check_whole("correct", state["correct"], state["samples"])

    def import_state(self, run: Run, state: Mapping[str, Any]) -> None:
        self._loss_sum, self._correct = state["loss_sum"], state["correct"]
        self._samples = state["samples"]

    def on_before_fit(self, run: Run) -> None:
        self._test_sizes = evaluation_sizes(run.algorithm.benchmark, run.algorithm.measured_on)

    def on_before_epoch(self, run: Run) -> None:
        self._loss_sum, self._correct, self._samples = 0.0, 0, 0

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Log each step's loss and update the epoch's sums."""
        assert chunk.losses is not None and chunk.correct is not None
        for logger in run.loggers:
            logger.log_steps(
                "loss",
                chunk.losses,
                first_step=chunk.first_step,
                epoch=chunk.epoch,
                task=chunk.task,
            )
            if LR_FACTOR in chunk.arrays:
                lr = run.algorithm.learning_rate * chunk.arrays[LR_FACTOR]
                logger.log_steps(
                    "lr", lr, first_step=chunk.first_step, epoch=chunk.epoch, task=chunk.task
                )
        self._loss_sum += float(chunk.losses.sum(dtype=np.float64)) * chunk.batch_size
        self._correct += int(chunk.correct.sum())
        self._samples += chunk.steps * chunk.batch_size

    def on_after_epoch(self, run: Run) -> None:
        """Log the epoch's mean loss and training accuracy."""
        if self._samples == 0:
            return
        run.log(
            {
                "train_loss": self._loss_sum / self._samples,
                "train_accuracy": self._correct / self._samples,
            }
        )

    def on_after_validation(self, run: Run) -> None:
        """Log the new row of the matrix, the metrics so far and the matrix."""
        task = run.task
        matrix, task_aware = run.matrix, run.progress.accuracy_matrix_task_aware
        matrices = {"": matrix} if task_aware is None else {"": matrix, "_task_aware": task_aware}
        values: dict[str, float] = {}
        for suffix, measured in matrices.items():
            for j, accuracy in enumerate(measured[task].tolist(), 1):
                if not np.isnan(accuracy):
                    values[f"accuracy{suffix}/task_{j}"] = accuracy
        if task > 0:
            so_far = np.s_[: task + 1, :task]
            metrics = run_metrics(
                matrix[so_far],
                None if task_aware is None else task_aware[so_far],
                self._test_sizes[:task],
            )
            values.update({name: v for name, v in metrics.items() if v is not None})
        run.log(values)
        for suffix, measured in matrices.items():
            for logger in run.loggers:
                logger.log_matrix(f"accuracy_matrix{suffix}", measured, step=run.step, task=task)

    def on_after_fit(self, run: Run) -> None:
        """Log the metrics of the whole stream."""
        metrics = run_metrics(run.matrix, run.progress.accuracy_matrix_task_aware, self._test_sizes)
        for logger in run.loggers:
            logger.log_summary(metrics)

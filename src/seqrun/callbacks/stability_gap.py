"""StabilityGapCallback: measures how far accuracies drop within tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from seqrun.checks import ConfigError, whole
from seqrun.files import write_atomically, write_json
from seqrun.plan import Chunk
from seqrun.records.checkpoint_checks import (
    CheckpointError,
    check_integers,
    check_keys,
    check_like,
    check_number,
)
from seqrun.training.callback import Algorithm, BaseCallback, Run

FILE = "stability_gap.json"
FIGURE = "figures/stability_gap.png"
NOT_MEASURED = -1.0
"""Stands for NaN in a checkpoint, whose arrays must be finite."""


@dataclass(kw_only=True, eq=False)
class StabilityGapCallback(BaseCallback):
    """Evaluate all tasks so far every `every_steps` training steps; compute worst-case accuracies.

    Let A(i, n) be the accuracy on task i after n steps, and t_i the number of steps done when task
    i ended. After task k:

        min-ACC_k = 1/(k-1) sum_{i<k} min_n A(i, n) over the measured n with t_i < n <= t_k
        WC-ACC_k = 1/k A(k, t_k) + (1 - 1/k) min-ACC_k

    min-ACC_1 is undefined and WC-ACC_1 = A(1, t_1). De Lange et al. 2023, "Continual evaluation
    for lifelong learning: Identifying the stability gap", arXiv:2205.13452, section 3.

    Accuracies are measured after every multiple of `every_steps` steps and whenever a row of the
    accuracy matrix is measured, such as at the end of a task, on the same data as the matrix.
    Differs from the paper: the paper evaluates on a sample of each test set, not on all of it.

    The callback does not change training. It logs "stepwise_accuracy/task_<i>", "min_accuracy" and
    "worst_case_accuracy", and writes all of them to stability_gap.json and
    figures/stability_gap.png in the run directory.

    Args:
        every_steps: number of steps, >= 1; 1 is the paper's per-iteration evaluation.

    Raises:
        ConfigError: a value out of range; an algorithm that trains on all tasks at once.
    """

    every_steps: int = 10

    products: ClassVar[tuple[str, ...]] = (FILE, FIGURE)

    _steps: list[int] = field(default_factory=list, init=False, repr=False)
    _tasks: list[int] = field(default_factory=list, init=False, repr=False)
    _rows: list[np.ndarray] = field(default_factory=list, init=False, repr=False)
    _num_logged: int = field(default=0, init=False, repr=False)
    _minimum: list[float | None] = field(default_factory=list, init=False, repr=False)
    _worst: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        whole("every_steps", self.every_steps, 1)

    @property
    def every_n_steps(self) -> int:
        return self.every_steps

    def check(self, algorithm: Algorithm) -> None:
        """Raise ConfigError unless the algorithm trains on one task after the other."""
        if len(algorithm.trained_tasks()) < algorithm.num_tasks:
            raise ConfigError(
                f"algo={algorithm.name}: must train on every task in turn with "
                "callbacks.stability_gap, which measures tasks that have ended: algo.mode must be "
                "cumulative, not all_at_once"
            )

    def on_before_fit(self, run: Run) -> None:
        """Forget an earlier run."""
        self._steps, self._tasks, self._rows, self._num_logged = [], [], [], 0
        self._minimum, self._worst = [], []

    def export_state(self, run: Run) -> dict[str, Any]:
        empty = np.empty((0, run.algorithm.num_tasks))
        rows = np.nan_to_num(np.array(self._rows), nan=NOT_MEASURED) if self._rows else empty
        return {
            "steps": np.array(self._steps, np.int64),
            "tasks": np.array(self._tasks, np.int64),
            "rows": rows,
            "minimum": self._minimum,
            "worst": self._worst,
        }

    def check_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless the run so far can have measured `state`."""
        check_keys(state, ("steps", "tasks", "rows", "minimum", "worst"))
        steps, tasks, rows = state["steps"], state["tasks"], state["rows"]
        check_integers("steps", steps, 1, run.step)
        check_integers("tasks", tasks, 1, run.task)
        check_like("rows", rows, np.empty((len(steps), run.algorithm.num_tasks)))
        in_order = len(steps) == len(tasks) and (np.diff(steps) >= 0).all()
        if not in_order or (np.diff(tasks) < 0).any() or not (tasks >= 1).all():
            raise CheckpointError(
                "steps, tasks: must be in ascending order, with one task per step"
            )
        if not (((rows >= 0) & (rows <= 1)) | (rows == NOT_MEASURED)).all():
            raise CheckpointError(f"rows: must hold fractions in [0, 1], or {NOT_MEASURED}")
        for name in ("minimum", "worst"):
            values = state[name]
            if not isinstance(values, list) or len(values) > len(run.progress.task_losses):
                raise CheckpointError(f"{name}: must be a list with one number per task done")
            for index, value in enumerate(values):
                if value is not None or name == "worst" or index > 0:
                    check_number(name, value, 0.0, 1.0)
        if len(state["minimum"]) != len(state["worst"]):
            raise CheckpointError("minimum, worst: must have the same length")

    def import_state(self, run: Run, state: Mapping[str, Any]) -> None:
        self._steps, self._tasks = state["steps"].tolist(), state["tasks"].tolist()
        self._rows = list(np.where(state["rows"] == NOT_MEASURED, np.nan, state["rows"]))
        self._minimum, self._worst = list(state["minimum"]), list(state["worst"])
        self._num_logged = len(self._steps)

    def on_every_n_steps(self, run: Run, step: int) -> None:
        """Evaluate every task so far."""
        row = np.full(run.algorithm.num_tasks, np.nan)
        row[: run.task] = run.accuracies(range(1, run.task + 1))
        self._add_row(step, run.task, row)

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Log the accuracies measured in the chunk."""
        for index in range(self._num_logged, len(self._steps)):
            seen = self._rows[index][: run.task].tolist()
            values = {f"stepwise_accuracy/task_{i}": accuracy for i, accuracy in enumerate(seen, 1)}
            run.log(values, step=self._steps[index])
        self._num_logged = len(self._steps)

    def on_after_validation(self, run: Run) -> None:
        """Add the row of the matrix; at the end of a task compute the metrics."""
        task = run.task
        if task == 0:
            return
        row = np.full(run.algorithm.num_tasks, np.nan)
        row[:task] = run.matrix[task, :task]
        self._add_row(run.step, task, row)
        self._num_logged = len(self._steps)  # MetricCallback logs the matrix
        if not run.progress.task_is_done:
            return
        minimum, worst = worst_case(np.array(self._rows), np.array(self._tasks), task)
        self._minimum.append(minimum)
        self._worst.append(worst)
        values = {"worst_case_accuracy": worst}
        if minimum is not None:
            values["min_accuracy"] = minimum
        run.log(values)
        if run.directory is not None:
            record = {
                "every_steps": self.every_steps,
                "min_accuracy": self._minimum,
                "worst_case_accuracy": self._worst,
                "steps": self._steps,
                "tasks": self._tasks,
                "accuracy": self._rows,
            }
            write_json(run.directory / FILE, record)

    def on_after_fit(self, run: Run) -> None:
        """Draw the figure."""
        if run.directory is not None:
            from seqrun.evaluation.plots import stability_png

            names = run.algorithm.names
            title = f"{names['algo']} on {names['benchmark']}, every {self.every_steps} steps"
            png = stability_png(
                np.array(self._steps), np.array(self._tasks), np.array(self._rows), title
            )
            write_atomically(run.directory / FIGURE, png)

    def _add_row(self, step: int, task: int, row: np.ndarray) -> None:
        self._steps.append(step)
        self._tasks.append(task)
        self._rows.append(row)


def worst_case(rows: np.ndarray, tasks: np.ndarray, k: int) -> tuple[float | None, float]:
    """Return min-ACC and WC-ACC after task k (see StabilityGapCallback).

    Args:
        rows: (N, T) accuracies in the order of measurement, the last row after task k; NaN = not
            measured.
        tasks: (N,) the task (1-based) in training at each measurement.
        k: 1-based; min-ACC after task 1 is undefined (None).
    """
    current = float(rows[-1, k - 1])
    if k == 1:
        return None, current
    lowest = [np.nanmin(rows[(tasks > i) & (tasks <= k), i - 1]) for i in range(1, k)]
    minimum = float(np.mean(lowest))
    return minimum, current / k + (1 - 1 / k) * minimum

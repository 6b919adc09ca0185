"""EarlyStoppingCallback: ends the training of a task when its accuracy stops increasing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from seqrun.checks import ConfigError, Numerics, added, at_least, boolean, one_of, whole
from seqrun.records.checkpoint_checks import (
    CARRIED,
    CheckpointError,
    check_keys,
    check_like,
    check_number,
    check_whole,
)
from seqrun.training.callback import Algorithm, BaseCallback, Run


@dataclass(kw_only=True, eq=False)
class EarlyStoppingCallback(BaseCallback):
    """Stop a task after `patience` epochs without a better validation accuracy.

    The accuracy on held-out training data, or on test data if `split` is "test", is measured after
    each epoch. An epoch is better than the best so far if its accuracy is larger by more than
    `min_delta`. When training stops, the task ends as after its last epoch: importances, memories
    and the row of the matrix follow. With `restore_best` it ends as after its best epoch, as if no
    epoch had followed: with the parameters, statistics, optimizer and algorithm state (path
    integrals, learned rates, running importances) and the memory's writes of then. Only counters
    and costs are those of all epochs.

    The accuracy matrix is of the test data, which the callback does not see unless `split` is
    "test". The record has both: `measured_on` and `selected_on`.

    Args:
        patience: number of epochs, >= 1.
        min_delta: fraction, >= 0.
        monitor: "current" (the mean over the tasks whose data are trained on: one, but for joint)
            or "seen" (the mean over tasks so far).
        restore_best: end the task as after its best epoch instead of its last.
        split: the data to watch, "validation" or "test". Some papers used "test", and their numbers
            can only be reproduced with it. It selects the best of several networks on the test
            data, so the accuracies are too optimistic.
        measured_on: the data of the accuracy matrix, "test" or "validation". Searches set
            "validation", so that they do not select on the test data.

    Raises:
        ConfigError: a value out of range; no held-out data for "validation", or held-out data with
            "test".
    """

    patience: int = 3
    min_delta: float = 0.0
    monitor: str = "current"
    restore_best: bool = True
    split: str = "validation"
    measured_on: str = added("test")

    numerics: ClassVar[Numerics] = 2

    _best: float | None = field(default=None, init=False, repr=False)
    _best_epoch: int = field(default=0, init=False, repr=False)
    _arrays: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        whole("patience", self.patience, 1)
        at_least("min_delta", self.min_delta, 0.0)
        one_of("monitor", self.monitor, ("current", "seen"))
        boolean("restore_best", self.restore_best)
        one_of("split", self.split, ("validation", "test"))
        one_of("measured_on", self.measured_on, ("validation", "test"))

    @property
    def selected_on(self) -> str:
        return self.split

    def check(self, algorithm: Algorithm) -> None:
        """Raise ConfigError unless accuracies are measured on the data that `split` names."""
        held_out = algorithm.benchmark.validation_fraction
        if self.split == "validation" and not held_out:
            raise ConfigError(
                "benchmark.validation_fraction=0: must be > 0 with callbacks.early_stopping, "
                "unless callbacks.early_stopping.split=test"
            )
        if self.split == "test" and held_out:
            raise ConfigError(
                f"benchmark.validation_fraction={held_out}: must be 0 with "
                "callbacks.early_stopping.split=test"
            )
        if self.measured_on == "validation" and not held_out:
            raise ConfigError(
                "callbacks.early_stopping.measured_on=validation: must be test with "
                "benchmark.validation_fraction=0"
            )

    def export_state(self, run: Run) -> dict[str, Any]:
        return {"best": self._best, "best_epoch": self._best_epoch, **self._arrays}

    def check_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `state` has an epoch so far and arrays of this run."""
        own: dict[str, np.ndarray] = {}
        if self.restore_best and state.get("best") is not None:
            arrays = run.algorithm.export_arrays()
            own = {name: array for name, array in arrays.items() if name.startswith(CARRIED)}
        check_keys(state, ("best", "best_epoch", *own))
        check_whole("best_epoch", state["best_epoch"], run.epoch)
        if (state["best"] is None) != (state["best_epoch"] == 0):
            raise CheckpointError("best: must be null exactly if best_epoch=0")
        if state["best"] is not None:
            check_number("best", state["best"], 0.0, 1.0)
        for name, array in own.items():
            check_like(name, state[name], array)

    def import_state(self, run: Run, state: Mapping[str, Any]) -> None:
        self._best, self._best_epoch = state["best"], state["best_epoch"]
        self._arrays = {n: a for n, a in state.items() if n.startswith(CARRIED)}

    def on_before_task(self, run: Run) -> None:
        self._best, self._best_epoch, self._arrays = None, 0, {}

    def on_after_epoch(self, run: Run) -> None:
        """Measure the accuracy and decide whether to stop; at the end return to the best epoch."""
        accuracy = self._accuracy(run)
        run.log({f"{self.split}_accuracy": accuracy})
        if self._best is None or accuracy > self._best + self.min_delta:
            self._best, self._best_epoch = accuracy, run.epoch
            if self.restore_best:
                arrays = run.algorithm.export_arrays()
                self._arrays = {n: a for n, a in arrays.items() if n.startswith(CARRIED)}
        run.stop_task = run.epoch - self._best_epoch >= self.patience
        epochs = run.algorithm.epochs(run.task)
        is_last = run.stop_task or run.epoch == epochs
        if is_last and self.restore_best and self._best_epoch < run.epoch:
            run.return_to_epoch(self._best_epoch, self._arrays)

    def _accuracy(self, run: Run) -> float:
        """Return the mean accuracy on the monitored tasks."""
        current = self.monitor == "current"
        tasks = run.algorithm.tasks_in_training if current else range(1, run.task + 1)
        accuracies = run.accuracies(tasks, self.split)
        return sum(accuracies) / len(accuracies)

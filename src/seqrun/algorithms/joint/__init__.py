"""Joint: training on the data of several tasks at once.

Paper: none; the upper reference of every comparison ("multi-task", "offline").
Loss: cross-entropy on a batch drawn from the union of tasks 1..t (`mode` = "cumulative"), or from
the whole stream in a single run ("all_at_once", which papers report).

Joint keeps the data of every task, so it is not a continual-learning method.
Reduces to naive: only on a stream of one task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError, boolean, one_of


@dataclass(kw_only=True, eq=False)
class JointOptions(BaseAlgorithm):
    """Train on the union of the tasks so far, or of all tasks: the upper reference.

    Args:
        mode: "cumulative": task t trains on the data of tasks 1..t; "all_at_once": a single run on
            the data of all tasks, with the learning rate and number of epochs of the first task;
            only the first (untrained) and last rows of the accuracy matrix are measured.
        from_scratch: start every task from the initial weights, fresh statistics and a fresh
            optimizer, instead of continuing from the last task ("cumulative" only).

    Raises:
        ConfigError: a value out of range, or options that exclude each other.
    """

    mode: str = "cumulative"
    from_scratch: bool = False

    name: ClassVar[str] = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mode", self.mode, ("cumulative", "all_at_once"))
        boolean("from_scratch", self.from_scratch)
        if self.mode == "all_at_once" and self.from_scratch:
            raise ConfigError("from_scratch=True: must be false with mode=all_at_once, one run")
        for key, value in (
            ("training.epochs_per_task", self.training.epochs_per_task),
            ("training.steps_per_task", self.training.steps_per_task or 1),
            ("benchmark.batch_size", self.benchmark.batch_size),
        ):
            if self.mode == "all_at_once" and not isinstance(value, int):
                raise ConfigError(
                    f"{key}={list(value)}: must be one integer with mode=all_at_once, one run"
                )

    @property
    def trains_on_task_alone(self) -> bool:
        return False

    @property
    def tasks_in_training(self) -> range:
        """The tasks so far, whose data are those of the current one; all with "all_at_once"."""
        return range(1, self.task + 1)

    def trained_tasks(self) -> range:
        """Return every task; with "all_at_once" only the last, whose data are those of all."""
        tasks = super().trained_tasks()
        return tasks[-1:] if self.mode == "all_at_once" else tasks

    def training_data(self, task: int) -> Dataset:
        """Return the samples of tasks 1..task."""
        return self.benchmark.cumulative_data(task, "train")

    def training_size(self, task: int) -> int:
        return sum(self.benchmark.task_size(t, "train") for t in range(1, task + 1))

    def hparams(self) -> dict[str, float]:
        """Use the first task's learning rate with "all_at_once"."""
        scalars = super().hparams()
        if self.mode == "all_at_once":
            scalars["lr"] = self.training.learning_rate(self.optimizer.lr_of(1), 1)
        return scalars

    def on_before_task(self) -> None:
        """Reset the weights if `from_scratch`."""
        if self.from_scratch:
            self.engine.set_weights(self.initial_weights())

"""Joint: training on the data of several tasks at once.

Paper: none; the upper reference of every comparison ("multi-task", "offline").
Loss: cross-entropy on a batch drawn from the union of tasks 1..t (`mode` = "cumulative"), or from
the whole stream in one run ("all_at_once", what papers report).

Joint keeps every task's data: it is no continual-learning method and reduces to naive never but
for one task.
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
        mode: "cumulative": at task t on the data of tasks 1..t; "all_at_once": one run on the data
            of all tasks, so that only the first (untrained) and last rows of the accuracy matrix
            are measured, at the first task's learning rate and number of epochs.
        from_scratch: start every task from the initial weights, fresh statistics and a fresh
            optimizer, instead of where the last one ended ("cumulative" only).

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
            ("benchmark.batch_size", self.benchmark.batch_size),
        ):
            if self.mode == "all_at_once" and not isinstance(value, int):
                raise ConfigError(
                    f"{key}={list(value)}: must be one integer with mode=all_at_once, one run"
                )

    @property
    def trains_on_task_alone(self) -> bool:
        """No: on those of earlier tasks too."""
        return False

    def trained_tasks(self) -> range:
        """Return every task, or the last one alone, which stands for all."""
        tasks = super().trained_tasks()
        return tasks[-1:] if self.mode == "all_at_once" else tasks

    def training_data(self, task: int) -> Dataset:
        """Return the samples of tasks 1..task."""
        return self.benchmark.cumulative_data(task, "train")

    def training_size(self, task: int) -> int:
        """Return the number of samples of tasks 1..task."""
        return sum(self.benchmark.task_size(t, "train") for t in range(1, task + 1))

    def hparams(self) -> dict[str, float]:
        """Give the one run the first task's learning rate."""
        scalars = super().hparams()
        if self.mode == "all_at_once":
            scalars["lr"] = self.training.learning_rate(self.optimizer.lr, 1)
        return scalars

    def on_before_task(self) -> None:
        """Start afresh, if asked to."""
        if self.from_scratch:
            self.engine.set_weights(self.initial_weights())

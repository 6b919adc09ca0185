"""Independent: a fresh model per task.

Paper: none; the reference without forgetting and without transfer ("single-task", "one model per
task").
Loss: cross-entropy on the current task's batch; every task starts from the initial weights and
trains at the full learning rate, whatever `training.lr_decay`, so that all references are alike.

Task j is evaluated with the model that was trained on it, so the task must be known at test time:
accuracies on a domain-incremental stream are task-aware, and class-incremental streams are refused.
A task that has not been trained yet is evaluated with the initial weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.checks import Numerics


class IndependentModels(NamedTuple):
    """The models of all tasks, as arrays of the framework.

    Attributes:
        params: task (1-based, as text) -> parameter name -> value; the initial weights if the
            task has not been trained yet.
        stats: task -> BatchNorm statistic name -> value.
    """

    params: dict[str, dict[str, Any]]
    stats: dict[str, dict[str, Any]]


def _numerics(options: Mapping[str, Any]) -> int:
    """Return 2 where earlier versions trained later tasks at a decayed learning rate, else 1."""
    training = options["training"]
    return 2 if training.lr_decay != 1 or training.lr_min > 0 else 1


@dataclass(kw_only=True, eq=False)
class IndependentOptions(BaseAlgorithm):
    """Train a fresh model per task and evaluate each task with its own.

    All models start from the same initial weights, with fresh statistics and optimizer, and train
    with the optimizer's learning rate; `training.lr_decay` and `lr_min` have no effect.

    Raises:
        ConfigError: a class-incremental stream, where the task is unknown at test time.
    """

    name: ClassVar[str] = "independent"
    numerics: ClassVar[Numerics] = staticmethod(_numerics)
    scenarios: ClassVar[tuple[str, ...]] = ("task", "domain")
    scenarios_reason: ClassVar[str] = "which chooses its model by the task at test"

    def hparams(self) -> dict[str, float]:
        """Use the full learning rate in every task."""
        return super().hparams() | {"lr": self.optimizer.lr_of(max(self.task, 1))}

    def initial_persistent_state(self) -> IndependentModels:
        """Return the initial weights for every task."""
        params, stats = self.engine.snapshot()
        tasks = [str(t) for t in range(1, self.num_tasks + 1)]
        return IndependentModels(dict.fromkeys(tasks, params), dict.fromkeys(tasks, stats))

    def evaluation_weights(self, task: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the task's own model; for the current task, the model in training."""
        if task == self.task:
            return super().evaluation_weights(task)
        return self.persistent.params[str(task)], self.persistent.stats[str(task)]

    def on_before_task(self) -> None:
        """Start from the initial weights."""
        self.engine.set_weights(self.initial_weights())

    def on_after_task(self) -> None:
        """Store the task's model."""
        params, stats = self.engine.snapshot()
        models, task = self.persistent, str(self.task)
        self.persistent = IndependentModels(
            models.params | {task: params}, models.stats | {task: stats}
        )

"""MC-SGD: Mode Connectivity SGD.

Paper: Mirzadeh et al. 2021, "Linear mode connectivity in multitask and continual learning",
2010.04495, section 5. Sequential training gives w_hat_t from w_hat_{t-1}; then w_bar_t minimises

    sum_{a in {0, 1/n, ..., 1}} L_memory(w_bar_{t-1} + a (w - w_bar_{t-1}))
                              + L_t(w_hat_t + a (w - w_hat_t))

over w, starting from w_bar_{t-1} + position (w_hat_t - w_bar_{t-1}), so that lines of low loss
connect it to both. w_bar_t is evaluated; the next task continues training from w_hat_t; w_bar_1 =
w_hat_1. Within a task, before w_bar_t is found, the w_hat in training is evaluated.

w_hat equals naive to the bit; w_bar never reduces to it. The memory holds tasks 1..t-1. The loss
along the lines is computed in eval mode with the BatchNorm statistics of w_hat_t, which are also
used to evaluate w_bar_t.

Differs from the paper: nothing by default; the values of the `lmc_` options are ours.
`lmc_gradient`, `lmc_loss` = "authors" and
`lmc_memory_includes_current` follow the authors' code where it differs from their paper.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqrun.algorithms.base.memory import MemoryOwner
from seqrun.algorithms.mcsgd.line import (
    GRADIENTS,
    LOSSES,
    Line,
    Side,
    all_samples,
    line_points,
    minibatches,
    side,
)
from seqrun.benchmarks import Dataset
from seqrun.checks import at_least, boolean, changed, one_of, whole, within
from seqrun.memory import MemoryMechanism
from seqrun.training.divergence import TrainingDiverged


class MCSGDModes(NamedTuple):
    """The weights that MC-SGD keeps from task to task.

    Attributes:
        w_bar: parameter name -> value of w_bar_t; the initial weights before the first task ends.
        stats: BatchNorm statistic name -> value after training w_hat_t.
    """

    w_bar: dict[str, Any]
    stats: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class MCSGDOptions(MemoryOwner):
    """After each task, find weights that lines of low loss connect to the old and the new ones.

    Mirzadeh et al. 2021 (2010.04495), section 5, which defines n, a, w_bar and w_hat.

    Args:
        per_task_memory_samples: samples kept of each task, >= 1.
        memory_policy: "class_balanced" (the same number of each class) or "random".
        lmc_lr: learning rate of the minimisation, > 0.
        lmc_momentum: its momentum, in [0, 1), reset to zero at each task.
        lmc_epochs: passes over the current samples, >= 1; with lmc_steps = "full_batch" each pass
            is one step.
        lmc_steps: "full_batch" (each step uses all samples) or "minibatch" (a step for each batch
            of the current samples, with the same number drawn from memory).
        lmc_batch_size: samples of a minibatch, >= 1; with "full_batch" it only affects lmc_loss =
            "authors".
        lmc_line_samples: n >= 1; the loss along a line is computed at n + 1 points.
        lmc_init_position: starting position between w_bar_{t-1} (0) and w_hat_t (1).
        lmc_current_samples: number of samples of the current task that L_t is computed on, drawn at
            random, >= 1; None = all.
        lmc_current_weight: factor of L_t, >= 0.
        lmc_gradient: factor of the gradient at point k: "paper", k/n; "unscaled", 1; "authors",
            n + 1 - k (their code accumulates gradients from point to point).
        lmc_loss: "mean" cross-entropy; or "authors": the sum of the minibatches' means, divided by
            the number of samples.
        lmc_memory_includes_current: L_memory covers tasks 1..t, as in the authors' code, instead of
            1..t-1.

    Raises:
        ConfigError: a value out of range.
    """

    per_task_memory_samples: int = 10
    memory_policy: str = "class_balanced"
    lmc_lr: float = changed(0.005)
    lmc_momentum: float = 0.0
    lmc_epochs: int = 10
    lmc_steps: str = "full_batch"
    lmc_batch_size: int = 10
    lmc_line_samples: int = 5
    lmc_init_position: float = 0.5
    lmc_current_samples: int | None = 200
    lmc_current_weight: float = 1.0
    lmc_gradient: str = "paper"
    lmc_loss: str = "mean"
    lmc_memory_includes_current: bool = False

    name: ClassVar[str] = "mcsgd"
    vectorizable: ClassVar[tuple[str, ...]] = (
        "lmc_lr",
        "lmc_momentum",
        "lmc_init_position",
        "lmc_current_weight",
    )

    def __post_init__(self) -> None:
        one_of("memory_policy", self.memory_policy, ("class_balanced", "random"))
        at_least("lmc_lr", self.lmc_lr, 0.0, strictly=True)
        within("lmc_momentum", self.lmc_momentum, 0.0, 1.0, open_high=True)
        whole("lmc_epochs", self.lmc_epochs, 1)
        one_of("lmc_steps", self.lmc_steps, ("full_batch", "minibatch"))
        whole("lmc_batch_size", self.lmc_batch_size, 1)
        whole("lmc_line_samples", self.lmc_line_samples, 1)
        within("lmc_init_position", self.lmc_init_position, 0.0, 1.0)
        if self.lmc_current_samples is not None:
            whole("lmc_current_samples", self.lmc_current_samples, 1)
        at_least("lmc_current_weight", self.lmc_current_weight, 0.0)
        one_of("lmc_gradient", self.lmc_gradient, GRADIENTS)
        one_of("lmc_loss", self.lmc_loss, LOSSES)
        boolean("lmc_memory_includes_current", self.lmc_memory_includes_current)
        super().__post_init__()

    def make_memory(self) -> MemoryMechanism:
        return MemoryMechanism(
            policy=self.memory_policy, per_task_memory_samples=self.per_task_memory_samples
        )

    def make_replay_dataset(self, data: Dataset) -> Dataset:
        """Return the task's data alone: no training step reads the memory."""
        self.memory.start_task(data, self.num_tasks)
        return data

    def initial_persistent_state(self) -> MCSGDModes:
        """Return the initial weights."""
        return MCSGDModes(*self.engine.snapshot())

    def reset(self) -> None:
        super().reset()
        self._is_in_task = False

    def evaluation_weights(self, task: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return w_bar; within a task and before the second one, w_hat."""
        if self._is_in_task or self.task <= 1:
            return super().evaluation_weights(task)
        return self.persistent

    def on_before_task(self) -> None:
        """From now on w_hat is evaluated, since the last w_bar knows nothing of the task."""
        self._is_in_task = True

    def minimise(self, memory: Side, current: Side, line: Line) -> dict[str, Any]:
        """Return w_bar_t from `self.persistent` (w_bar_{t-1}) and `self.params` (w_hat_t)."""
        raise NotImplementedError

    def on_after_task(self) -> None:
        """Store the task's samples and find w_bar."""
        self.memory.end_task(self.task, self.random)
        self.progress.memory_bytes = self.memory.num_bytes
        timing = self.progress.timing
        started, compiled = time.perf_counter(), timing["compile_seconds"]
        w_hat, stats = self.engine.snapshot()
        self.persistent = MCSGDModes(self._w_bar() if self.task > 1 else w_hat, stats)
        self._is_in_task = False
        spent = time.perf_counter() - started - (timing["compile_seconds"] - compiled)
        self.progress.add_seconds("lmc_seconds", spent)

    def _w_bar(self) -> dict[str, Any]:
        memory, current = self.plan_sides()
        w_bar = self.minimise(
            memory, current, line_points(self.lmc_gradient, self.lmc_line_samples)
        )
        self.progress.gradient_steps += len(memory.rows)
        if not all(np.isfinite(float(value.sum())) for value in w_bar.values()):
            raise TrainingDiverged(
                f"w_bar is not finite after task {self.task}; a smaller algo.lmc_lr may help"
            )
        return w_bar

    def plan_sides(self) -> tuple[Side, Side]:
        """Return the samples of memory and of the current task, planned for every step.

        Their arrays are as large as the last task of the stream needs, so that all tasks share one
        program.
        """
        rng = self.random.generator("memory", self.task, 0, 1)
        last = self.task if self.lmc_memory_includes_current else self.task - 1
        samples = self.memory.data
        assert samples is not None  # a task has ended
        stored = samples.rows(samples.t < last)
        drawn = np.arange(self.num_current)
        if self.lmc_current_samples is not None and self.lmc_current_samples < len(drawn):
            drawn = np.sort(rng.choice(len(drawn), self.lmc_current_samples, replace=False))
        counts, size = (len(stored.y), len(drawn)), self.lmc_batch_size
        if self.lmc_steps == "full_batch":
            memory, current = (
                [all_samples(count, size, self.lmc_loss)] * self.lmc_epochs for count in counts
            )
        else:
            memory, current = minibatches(*counts, size, self.lmc_epochs, self.lmc_loss, rng)
        current = [(rows, self.lmc_current_weight * weights) for rows, weights in current]

        tasks = self.num_tasks if self.lmc_memory_includes_current else self.num_tasks - 1
        longest = max(self.training_size(t) for t in self.trained_tasks())
        max_current = min(longest, self.lmc_current_samples or longest)
        memory_side, current_side = (
            side(
                data,
                steps,
                capacity=capacity,
                step_capacity=capacity if self.lmc_steps == "full_batch" else size,
                segment_size=self.benchmark.eval_batch_size,
            )
            for data, steps, capacity in (
                (stored, memory, self.per_task_memory_samples * tasks),
                (self.replay_dataset.rows(drawn), current, max_current),
            )
        )
        return memory_side, current_side

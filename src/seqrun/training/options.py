"""TrainingOptions: options of training that do not depend on the algorithm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from seqrun.checks import (
    ConfigError,
    added,
    at_least,
    boolean,
    of_task,
    one_of,
    one_per_task,
    whole,
    whole_per_task,
    within,
)

SCHEDULES = ("constant", "linear", "cosine", "step", "one_cycle")
"""See seqrun.training.schedules."""
OF_SCHEDULES = {
    "lr_floor": ("linear", "cosine", "step", "one_cycle"),
    "lr_step_epochs": ("step",),
    "lr_step_factor": ("step",),
    "lr_restart_epochs": ("cosine",),
    "lr_restart_factor": ("cosine",),
    "lr_warmup_steps": ("constant", "linear", "cosine", "step"),
}
"""Key -> the schedules that it belongs to."""


@dataclass(frozen=True)
class TrainingOptions:
    """Epochs, learning-rate schedule over tasks, gradient clipping and evaluation.

    Args:
        epochs_per_task: passes over each task's data, >= 1; one integer, or one per task.
        lr_decay: factor gamma per task in (0, 1]: the learning rate of task t (from 1) is
            max(lr * gamma^(t-1), lr_min), with gamma^t if `decay_first_task`.
        lr_min: floor of the learning rate, >= 0.
        decay_first_task: decay the first task's learning rate too (Mirzadeh 2020).
        grad_clip: largest global norm of the gradient, > 0; None = no clipping.
        reinit_optimizer: when to reset the optimizer's state: before each "task" or "epoch", or
            "never".
        evaluate_every: evaluate after each "task" or "epoch".
        evaluate_on: "seen_and_next" (tasks so far and the next one), "seen" or "all".
        compile: whether PyTorch compiles the training steps, or only the network if steps are
            large: "auto" (by the fixed rule of `to_compile`), "always" or "never". JAX always
            compiles.
        chunk_steps: largest number of steps in one call of the engine, >= 1; None = by the fixed
            rule of `chunk_rule`.
        matmul_precision: how a GPU multiplies float32 matrices, "float32" or "tf32" (faster, with
            10 bits of mantissa instead of 23), the same on both backends. On a CPU always
            "float32".
        steps_per_task: batches of each task, >= 1, instead of `epochs_per_task`; one integer, or
            one per task. They go on through fresh orders of the task's data. None = whole epochs.
            An algorithm that takes several steps on a batch does so.

    Raises:
        ConfigError: a value out of range.
    """

    epochs_per_task: Any = 1  # int | list[int]
    lr_decay: float = 1.0
    lr_min: float = 0.0
    decay_first_task: bool = False
    grad_clip: float | None = None
    reinit_optimizer: str = "task"
    evaluate_every: str = "task"
    evaluate_on: str = "seen_and_next"
    compile: str = "auto"
    chunk_steps: int | None = None
    matmul_precision: str = added("float32")
    steps_per_task: Any = added(None)  # int | list[int] | None
    lr_schedule: str = added("constant")
    lr_schedule_scope: str = added("task")
    lr_warmup_steps: int = added(0)
    lr_floor: float = added(0.0)
    lr_step_epochs: int = added(1)
    lr_step_factor: float = added(0.1)
    lr_restart_epochs: int | None = added(None)
    lr_restart_factor: float = added(1.0)

    vectorizable: ClassVar[tuple[str, ...]] = ("lr_decay", "lr_min", "grad_clip")
    """As in BaseAlgorithm."""

    def __post_init__(self) -> None:
        whole_per_task("training.epochs_per_task", self.epochs_per_task, 1)
        if self.steps_per_task is not None:
            whole_per_task("training.steps_per_task", self.steps_per_task, 1)
            if self.epochs_per_task != 1:
                raise ConfigError(
                    f"training.epochs_per_task={self.epochs_per_task}: must be left at 1 with "
                    f"training.steps_per_task={self.steps_per_task}"
                )
        within("training.lr_decay", self.lr_decay, 0.0, 1.0, open_low=True)
        at_least("training.lr_min", self.lr_min, 0.0)
        boolean("training.decay_first_task", self.decay_first_task)
        if self.grad_clip is not None:
            at_least("training.grad_clip", self.grad_clip, 0.0, strictly=True)
        one_of("training.reinit_optimizer", self.reinit_optimizer, ("task", "epoch", "never"))
        one_of("training.evaluate_every", self.evaluate_every, ("task", "epoch"))
        one_of("training.evaluate_on", self.evaluate_on, ("seen_and_next", "seen", "all"))
        one_of("training.compile", self.compile, ("auto", "always", "never"))
        one_of("training.matmul_precision", self.matmul_precision, ("float32", "tf32"))
        if self.chunk_steps is not None:
            whole("training.chunk_steps", self.chunk_steps, 1)
        self._check_schedule()

    @property
    def has_schedule(self) -> bool:
        """Whether the learning rate changes within tasks."""
        return self.lr_schedule != "constant" or self.lr_warmup_steps > 0

    def _check_schedule(self) -> None:
        """Raise ConfigError if a value is out of range, or a key has no effect."""
        one_of("training.lr_schedule", self.lr_schedule, SCHEDULES)
        one_of("training.lr_schedule_scope", self.lr_schedule_scope, ("task", "run"))
        whole("training.lr_warmup_steps", self.lr_warmup_steps, 0)
        within("training.lr_floor", self.lr_floor, 0.0, 1.0, open_high=True)
        whole("training.lr_step_epochs", self.lr_step_epochs, 1)
        within("training.lr_step_factor", self.lr_step_factor, 0.0, 1.0, open_low=True)
        if self.lr_restart_epochs is not None:
            whole("training.lr_restart_epochs", self.lr_restart_epochs, 1)
        at_least("training.lr_restart_factor", self.lr_restart_factor, 1.0)
        for key, schedules in OF_SCHEDULES.items():
            default = type(self).__dataclass_fields__[key].default
            if getattr(self, key) != default and self.lr_schedule not in schedules:
                raise ConfigError(
                    f"training.{key}={getattr(self, key)}: has no effect with training.lr_schedule="
                    f"{self.lr_schedule}, only with {' or '.join(schedules)}"
                )

    def check_tasks(self, num_tasks: int) -> None:
        """Raise ConfigError unless a list of epochs or steps has one entry per task."""
        one_per_task("training.epochs_per_task", self.epochs_per_task, num_tasks)
        if self.steps_per_task is not None:
            one_per_task("training.steps_per_task", self.steps_per_task, num_tasks)

    def epochs(self, task: int) -> int:
        """Return the number of epochs of `task` (1-based), unless it has `steps`."""
        return of_task(self.epochs_per_task, task)

    def steps(self, task: int) -> int | None:
        """Return the number of batches of `task` (1-based); None = whole epochs."""
        return None if self.steps_per_task is None else of_task(self.steps_per_task, task)

    def learning_rate(self, lr: float, task: int) -> float:
        """Return the learning rate of `task` (1-based), given the optimizer's `lr`."""
        power = task if self.decay_first_task else task - 1
        return max(lr * self.lr_decay**power, self.lr_min)


def matmul_precision(training: TrainingOptions, device_kind: str) -> str:
    """Return the precision of a run's float32 products, "float32" or "tf32"."""
    return training.matmul_precision if device_kind == "cuda" else "float32"


def take_over(
    part: Any, key: str, value: Any, *, unset: Any, algo: str, own_key: str, or_null: bool = True
) -> Any:
    """Return a part with an algorithm's value for one of its options.

    Args:
        part: a backbone, an optimizer or TrainingOptions.
        key: <group>.<option> of the part.
        value: that of the algorithm.
        unset: the option's value if nobody sets it.
        algo, own_key: name of the algorithm and of its own option.
        or_null: whether null at `own_key` leaves the option to the part.

    Raises:
        ConfigError: the part has no such option, or it is set there as well.
    """
    group, name = key.split(".")
    if not hasattr(part, name):
        raise ConfigError(
            f"{own_key}={value!r}: must be null with {group}={part.name}, which has no {name} to "
            "set"
        )
    given = getattr(part, name)
    if given not in (unset, value):
        hint = f" (null leaves it to {key})" if or_null else ""
        raise ConfigError(
            f"{key}={given!r}: must not be set with algo={algo}, which sets it by "
            f"algo.{own_key}={value!r}{hint}"
        )
    return replace(part, **{name: value})

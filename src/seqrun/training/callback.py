"""BaseCallback: hooks before and after every event of a run. Run: the argument of every hook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from seqrun.benchmarks import BaseBenchmark, Dataset
from seqrun.checks import Numerics
from seqrun.loggers.base import BaseLogger
from seqrun.plan import Chunk, RandomStreams
from seqrun.records.checkpoint import Checkpoint
from seqrun.records.progress import Progress
from seqrun.records.results import RunRecord
from seqrun.training.options import TrainingOptions
from seqrun.training.step import Step

EVENTS = (
    "setup",
    "fit",
    "task",
    "epoch",
    "chunk",
    "training_step",
    "backward",
    "optimizer_step",
    "validation",
    "teardown",
)
STEP_EVENTS = ("training_step", "backward", "optimizer_step")
STEP_HOOKS = tuple(f"on_{when}_{event}" for event in STEP_EVENTS for when in ("before", "after"))
HOOKS = tuple(f"on_{when}_{event}" for event in EVENTS for when in ("before", "after"))


class Algorithm(Protocol):
    """The algorithm as callbacks see it; the object is a complete BaseAlgorithm.

    Attributes:
        name: such as "ewc"; `names` also has the names of benchmark, backbone and backend.
        backend: "torch" or "jax".
        benchmark, training, random: its parts.
        num_tasks: length of the stream.
        trains_on_task_alone: whether batches hold samples of the current task only.
        tasks_in_training: the tasks (1-based) whose training data the current task trains on.
        measured_on: the data of the accuracy matrix, "test" or "validation".
        steps_per_batch: training steps on each batch of the current task.
        replay_dataset: the dataset on the host that plan indices point into; its first
            `num_current` samples are the current task's training data.
        params, stats: name of a parameter or statistic -> value, an array of the framework.
        state: the algorithm's NamedTuple.
    """

    benchmark: BaseBenchmark
    training: TrainingOptions
    random: RandomStreams
    replay_dataset: Dataset
    num_current: int
    steps_per_batch: int

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> Mapping[str, str]: ...
    @property
    def backend(self) -> str: ...
    @property
    def num_tasks(self) -> int: ...
    @property
    def trains_on_task_alone(self) -> bool: ...
    @property
    def tasks_in_training(self) -> range: ...
    @property
    def measured_on(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def params(self) -> Any: ...
    @property
    def stats(self) -> Any: ...
    @property
    def state(self) -> Any: ...
    def trained_tasks(self) -> range: ...
    def training_size(self, task: int) -> int: ...
    def epochs(self, task: int) -> int: ...
    def export_arrays(self) -> Mapping[str, np.ndarray]: ...
    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None: ...


class Run(Protocol):
    """A run as its callbacks see it.

    Attributes:
        algorithm: the method, with its parts and its parameters.
        progress: all counters, matrices, losses and times.
        task, epoch: in training, 1-based; task 0 = before the first.
        step: training steps done.
        total_steps: training steps planned for the run.
        epoch_steps: training steps of the current epoch.
        matrix: (T+1, T) accuracies, NaN = not measured.
        stop_task: set this to True to end the task after the current epoch.
        directory: the run directory; None = the run has none.
        config_hash: identifies the experiment in its checkpoints.
        callbacks, loggers: the run's callbacks and loggers, in order.
    """

    stop_task: bool

    @property
    def algorithm(self) -> Algorithm: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def task(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def epoch_steps(self) -> int: ...
    @property
    def matrix(self) -> np.ndarray: ...
    @property
    def directory(self) -> Path | None: ...
    @property
    def config_hash(self) -> str: ...
    @property
    def callbacks(self) -> Sequence[BaseCallback]: ...
    @property
    def loggers(self) -> Sequence[BaseLogger]: ...

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Log scalars measured after `step` steps (None = now) with every logger."""

    def evaluate(self, task: int, split: str | None = None) -> float:
        """Return the accuracy on a task (1-based) at this moment, a fraction.

        Args:
            task: the task.
            split: "test" or "validation"; None = the data of the accuracy matrix.
        """

    def accuracies(self, tasks: Iterable[int], split: str | None = None) -> list[float]:
        """Return `evaluate` of several tasks; what they all need is made ready only once."""

    def return_to_epoch(self, epoch: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on as if the current task had been trained for `epoch` epochs only.

        Counters, and what was logged, count all epochs.

        Args:
            epoch: an epoch (1-based) of the current task.
            arrays: what `export_arrays` returned after it, as far as it changes within a task.
        """

    def record(self) -> RunRecord:
        """Return the run's record so far."""

    def checkpoint(self) -> Checkpoint:
        """Return a copy of the run's complete state."""

    def start_trace(self, folder: Path) -> None:
        """Start the framework's profiler; its trace goes into `folder`."""

    def stop_trace(self) -> None:
        """Stop the profiler and write the trace."""


class BaseCallback:
    """Observe or change a run by overriding hooks.

    Around each event E: the algorithm's `on_before_E`, every callback's `on_before_E`, E itself,
    the algorithm's `on_after_E`, every callback's `on_after_E`. A hook that nobody overrides costs
    nothing.

    Hooks of the step-level events (training_step, backward, optimizer_step) also get the `step`,
    whose fields, such as `step.gradients`, they may read and replace. A callback that overrides
    such a hook runs on the host: on JAX every step is then run by itself, instead of a whole chunk
    in one compiled program.
    """

    products: ClassVar[tuple[str, ...]] = ()
    """Files and folders that the callback writes into the run directory."""
    numerics: ClassVar[Numerics] = 1

    @property
    def measured_on(self) -> str | None:
        """The data that the accuracy matrix is to be of; None = those that the benchmark names."""
        return None

    @property
    def selected_on(self) -> str | None:
        """The data by which the callback chooses what a task ends with; None = it does not."""
        return None

    @property
    def every_n_steps(self) -> int | None:
        """Steps between two calls of `on_every_n_steps`; None = it is never called."""
        return None

    def on_every_n_steps(self, run: Run, step: int) -> None:
        """Observe the model after `step` steps, a multiple of `every_n_steps`; change nothing.

        `step` may lie anywhere in a chunk. The call does not change a bit of the run's numbers.
        """

    def check(self, algorithm: Algorithm) -> None:
        """Raise ConfigError unless the callback fits the algorithm and its parts.

        The data are not prepared yet.
        """

    def export_state(self, run: Run) -> dict[str, Any]:
        """Return what a resumed run needs: name -> plain data or NumPy array."""
        return {}

    def check_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `import_state` can continue from `state` (untrusted data).

        Called before training starts, when the data are prepared and counters and arrays are those
        of the checkpoint. On an error the previous checkpoint is tried.
        """

    def import_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Continue from the state that `export_state` returned.

        The hooks that come before this position of the task have run again.
        """

    def on_return_to_epoch(
        self, run: Run, plans: Sequence[Sequence[Mapping[str, np.ndarray]]]
    ) -> None:
        """Go on as if only the first epochs of the task, with these `plans`, had been trained."""

    def on_before_setup(self, run: Run) -> None: ...
    def on_after_setup(self, run: Run) -> None: ...
    def on_before_fit(self, run: Run) -> None: ...
    def on_after_fit(self, run: Run) -> None: ...
    def on_before_task(self, run: Run) -> None: ...
    def on_after_task(self, run: Run) -> None: ...
    def on_before_epoch(self, run: Run) -> None: ...
    def on_after_epoch(self, run: Run) -> None: ...
    def on_before_chunk(self, run: Run, chunk: Chunk) -> None: ...
    def on_after_chunk(self, run: Run, chunk: Chunk) -> None: ...
    def on_before_training_step(self, run: Run, step: Step) -> None: ...
    def on_after_training_step(self, run: Run, step: Step) -> None: ...
    def on_before_backward(self, run: Run, step: Step) -> None: ...
    def on_after_backward(self, run: Run, step: Step) -> None: ...
    def on_before_optimizer_step(self, run: Run, step: Step) -> None: ...
    def on_after_optimizer_step(self, run: Run, step: Step) -> None: ...
    def on_before_validation(self, run: Run) -> None: ...
    def on_after_validation(self, run: Run) -> None: ...
    def on_before_teardown(self, run: Run) -> None: ...
    def on_after_teardown(self, run: Run) -> None: ...


def has_step_hook(kind: type[BaseCallback]) -> bool:
    """Return whether a callback class overrides a step-level hook, and so runs on the host."""
    return any(getattr(kind, hook) is not getattr(BaseCallback, hook) for hook in STEP_HOOKS)

"""BaseCallback: a hook before and after every event of a run; Run: what a hook is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """What callbacks see of the algorithm; it is a BaseAlgorithm, with all that one has.

    Attributes:
        name: such as "ewc"; `names` has those of benchmark, backbone and backend too.
        backend: "torch" or "jax".
        benchmark, training, random: its parts.
        num_tasks: length of the stream.
        trains_on_task_alone: whether batches hold the current task's own samples alone.
        steps_per_batch: training steps on each batch of the current task.
        replay_dataset: on the host, what plan indices point into; the first `num_current` are the
            current task's training samples.
        params, stats: parameter or statistic name -> value, in the framework's own arrays.
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
    def params(self) -> Any: ...
    @property
    def stats(self) -> Any: ...
    @property
    def state(self) -> Any: ...
    def trained_tasks(self) -> range: ...
    def training_size(self, task: int) -> int: ...
    def export_arrays(self) -> Mapping[str, np.ndarray]: ...
    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None: ...


class Run(Protocol):
    """A run as its callbacks see it.

    Attributes:
        algorithm: the method, with its parts and its parameters.
        progress: all counters, matrices, losses and times.
        task, epoch: what is trained on, 1-based; task 0 = before the first.
        step: training steps done.
        total_steps: that the run plans.
        epoch_steps: of the current epoch.
        matrix: (T+1, T) accuracies, NaN = not measured.
        stop_task: set it to True and the epoch that ends is the task's last.
        directory: where the run keeps its files; None = nowhere.
        config_hash: of the experiment, for its checkpoints.
        callbacks, loggers: those of the run, in order.
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
        """Give scalars to every logger, as measured after `step` steps; None = now."""

    def evaluate(self, task: int) -> float:
        """Return the accuracy on a task (1-based) now, a fraction, on what the matrix measures."""

    def record(self) -> RunRecord:
        """Return the run's record as it stands."""

    def checkpoint(self) -> Checkpoint:
        """Return a copy of everything that the run carries."""

    def start_trace(self, folder: Path) -> None:
        """Begin to trace what the framework does, into `folder`."""

    def stop_trace(self) -> None:
        """End the trace and write it."""


class BaseCallback:
    """Observe or change a run by overriding hooks.

    Around each event E: the algorithm's `on_before_E`, every callback's `on_before_E`, E itself,
    the algorithm's `on_after_E`, every callback's `on_after_E`. A hook that nobody overrides costs
    nothing.

    Hooks of the step-level events (training_step, backward, optimizer_step) also get the `step`:
    they may read and replace its fields, such as `step.gradients`. A callback that overrides one
    is host code: on JAX it gets one compiled step per call instead of a compiled chunk.
    """

    products: ClassVar[tuple[str, ...]] = ()
    """Files and folders that it leaves in a run's directory."""
    numerics: ClassVar[Numerics] = 1

    @property
    def every_n_steps(self) -> int | None:
        """Steps after which `on_every_n_steps` is called, from the run's first; None = never."""
        return None

    def on_every_n_steps(self, run: Run, step: int) -> None:
        """Look at the model after `step` steps, wherever in a chunk they end; change nothing.

        The engines stop for it without changing a bit of the run.
        """

    def check(self, algorithm: Algorithm) -> None:
        """Raise ConfigError unless the callback fits the run's parts; nothing is prepared yet."""

    def export_state(self, run: Run) -> dict[str, Any]:
        """Return what a resumed run must know: name -> plain data, or a NumPy array."""
        return {}

    def check_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `import_state` can go on from `state`, which anyone wrote.

        The data are prepared, counters and arrays are the checkpoint's, and nothing has started.
        Then the checkpoint before is tried.
        """

    def import_state(self, run: Run, state: Mapping[str, Any]) -> None:
        """Continue from what `export_state` returned; hooks before the position have run again."""

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
    """Return whether a class of callbacks overrides a step-level hook, and so is host code."""
    return any(getattr(kind, hook) is not getattr(BaseCallback, hook) for hook in STEP_HOOKS)

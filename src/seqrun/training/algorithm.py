"""BaseAlgorithm: the base class of all methods."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqrun.backbones.base import BaseBackbone, draw_initial_weights
from seqrun.benchmarks import BaseBenchmark, Dataset
from seqrun.benchmarks.base import SCENARIOS
from seqrun.checks import ConfigError, Numerics, one_of, whole
from seqrun.loggers.base import BaseLogger
from seqrun.optimizers.base import BaseOptimizer
from seqrun.plan import Chunk, RandomStreams, batch_order
from seqrun.records.checkpoint import Checkpoint
from seqrun.records.checkpoint_checks import check_same_arrays, weights_of
from seqrun.records.progress import Progress
from seqrun.records.results import RunRecord
from seqrun.training.callback import HOOKS, BaseCallback
from seqrun.training.engine.base import Engine
from seqrun.training.options import TrainingOptions
from seqrun.training.step import Losses, Step

MAX_TASKS = 10_000
# Names from earlier versions and what replaced them: a class that still has one is refused.
RENAMED_IN_ALGORITHMS = {
    "training_loss": "losses(self, step), which returns Losses(task, total, logits)",
    "training_step": "on_before_training_step(self, step) or on_after_training_step(self, step)",
    "setup": "on_before_setup(self) or on_after_setup(self)",
    "start_engine": "start(self) of an engine of its own, named by engine_type",
    "pool_reads": "batch_names",
    "hyper_names": "hparam_names",
    "hyper": "hparams(self)",
    "task_pool": "make_replay_dataset(self, data)",
    "initial_kept": "initial_persistent_state(self)",
    "evaluation_reads": "evaluation_arrays(self, task)",
}
RENAMED_IN_CALLBACKS = {
    "pause_every": "every_n_steps",
    "on_pause": "on_every_n_steps(self, run, step)",
}
RENAMED_IN_OPTIMIZERS = {"hyper_names": "hparam_names", "hyper": "hparams(self)"}
CALLBACK_STATE_METHODS = ("export_state", "check_state", "import_state")


class NoState(NamedTuple):
    """The state of an algorithm that carries nothing from step to step."""


@dataclass(kw_only=True, eq=False)
class BaseAlgorithm(ABC):
    """Train a backbone over a benchmark's stream of tasks.

    A method subclasses PyTorchBaseAlgorithm or JaxBaseAlgorithm and overrides `losses`. Everything
    that is not a loss goes into hooks. They have the names of the callbacks' hooks (see
    BaseCallback), but no argument `run`. At every event the algorithm's hook runs before those of
    the callbacks.

    Args:
        benchmark: the stream.
        backbone, optimizer: of the same backend as the algorithm.
        callbacks, loggers: run in the order given.
        training: epochs, schedule, clipping and evaluation.
        seed: root of every random stream, >= 0.
        streams: name of a random stream -> its own seed (see seqrun.plan.STREAMS).
        device: "auto", "cpu" or "cuda".
        num_threads: CPU threads, >= 1; None = the engine's fixed rule.
        run_dir: the run directory, where loggers write files; None = the run has none.
        config: the resolved configuration, for records only.
        config_hash: identifies the experiment in its checkpoints.

    Attributes:
        engine: runs the steps on the device.
        progress: counters, measurements and timing of the run.
        random: source of every random decision.
        replay_dataset: the dataset on the host that plan indices point into; its first
            `num_current` samples are the current task's training data.
        persistent: see `initial_persistent_state`.
        dispatch: calls a hook of all callbacks; set by the Trainer.

    Raises:
        ConfigError: the parts do not fit together.
    """

    benchmark: BaseBenchmark
    backbone: BaseBackbone
    optimizer: BaseOptimizer
    callbacks: Sequence[BaseCallback] = ()
    loggers: Sequence[BaseLogger] = ()
    training: TrainingOptions = field(default_factory=TrainingOptions)
    seed: int = 0
    streams: Mapping[str, int | None] = field(default_factory=dict)
    device: str = "auto"
    num_threads: int | None = None
    run_dir: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_hash: str = ""

    name: ClassVar[str]
    backend: ClassVar[str]
    engine_type: ClassVar[type[Engine]]
    numerics: ClassVar[Numerics] = 1
    hparam_names: ClassVar[tuple[str, ...]] = ()
    """Numeric arguments that enter the arithmetic of a step, by way of `step.hparams`."""
    vectorizable: ClassVar[tuple[str, ...]] = ()
    """Numeric arguments whose values may differ between runs that share compiled programs.

    Compiled code gets such a value as an argument (in `hparams`, or in data and state made from it)
    and never reads it while it is traced. It may only check for None or 0: runs that differ in this
    share no program.
    """
    batch_names: ClassVar[tuple[str, ...]] = ("index",)
    """Plan arrays of row indices into the replay dataset: `step.batches` holds their samples.

    If the benchmark asks for augmentation, these samples are augmented; `step.dataset` never is.
    """
    steps_per_batch: int = field(init=False, default=1, repr=False)
    """Training steps on each batch of the current task."""
    is_compilable: ClassVar[bool] = True
    """Whether a step is short enough for PyTorch to compile as one program."""
    scenarios: ClassVar[tuple[str, ...]] = SCENARIOS
    """Scenarios that the algorithm supports."""
    scenarios_reason: ClassVar[str] = ""
    """Why it does not support the others."""

    engine: Engine = field(init=False, repr=False)
    progress: Progress = field(init=False, repr=False)
    random: RandomStreams = field(init=False, repr=False)
    replay_dataset: Dataset = field(init=False, repr=False)
    num_current: int = field(init=False, default=0, repr=False)
    persistent: Any = field(init=False, default=None, repr=False)
    dispatch: Callable[..., None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for part, value in (("backbone", self.backbone), ("optimizer", self.optimizer)):
            if value.backend != self.backend:
                raise ConfigError(
                    f"{part}={value.name}: is for backend {value.backend}, but the algorithm "
                    f"{self.name} is for backend {self.backend}"
                )
        if self.benchmark.scenario not in self.scenarios:
            raise ConfigError(
                f"benchmark.scenario={self.benchmark.scenario!r}: must be "
                f"{' or '.join(self.scenarios)} with algo={self.name}, {self.scenarios_reason}"
            )
        if self.benchmark.knows("input_shape"):  # otherwise it is known after `prepare`
            self.backbone.check_input(self.benchmark.input_shape)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        if self.num_threads is not None:
            whole("num_threads", self.num_threads, 1)
        if self.num_tasks > MAX_TASKS:
            raise ConfigError(
                f"benchmark.num_tasks={self.num_tasks}: must be at most {MAX_TASKS}, because the "
                "size of the accuracy matrix is its square"
            )
        self.training.check_tasks(self.num_tasks)
        self.optimizer.check_tasks(self.num_tasks)
        self.random = RandomStreams(self.seed, self.streams)
        self.reset()
        self.engine = self.engine_type(self)  # type: ignore[call-arg]  # subclasses take it
        check_overrides(type(self))
        check_overrides(type(self.optimizer))
        for callback in self.callbacks:
            check_overrides(type(callback))
            callback.check(self)

    @abstractmethod
    def fit(self, resume_from: Checkpoint | None = None) -> RunRecord:
        """Train over the whole stream and return the record.

        Args:
            resume_from: a checkpoint of the same experiment; None = start from the beginning.

        Raises:
            TrainingDiverged: the loss, or a parameter at a task's end, became NaN or infinite.
        """

    def reset(self) -> None:
        """Forget an earlier run; called when the algorithm is made and whenever `fit` begins.

        A method extends this if it has other attributes that a run changes.
        """
        self.progress = Progress.start(
            self.num_tasks, task_aware=self.benchmark.scenario == "class"
        )
        self.persistent, self.num_current = None, 0

    # ---- overridden by methods, in addition to the hooks; arrays are the framework's own

    @abstractmethod
    def losses(self, step: Step) -> Losses:
        """Return the step's task loss, the total loss to differentiate, and the logits."""

    @abstractmethod
    def backward(self, step: Step) -> None:
        """Compute `step.loss`, `step.logits` and `step.gradients` from `losses`."""

    @abstractmethod
    def optimizer_step(self, step: Step) -> None:
        """Clip `step.gradients` and update `step.params`."""

    def build_module(self) -> Any:
        """Return the module with everything that is trained: the backbone's, or one around it."""
        return self.backbone.build(self.benchmark.input_shape, self.benchmark.num_classes)

    def initial_state(self) -> Any:
        """Return the algorithm's state at the start of the run, a NamedTuple that steps replace."""
        return NoState()

    def initial_persistent_state(self) -> Any:
        """Return a NamedTuple of arrays on the device that no training step reads, or None.

        It is carried from task to task and stored as "kept/..." in checkpoints. It does not slow
        down the steps.
        """
        return None

    def trained_tasks(self) -> range:
        """Return the tasks (1-based) to train on; a row of the matrix is measured after each."""
        return range(1, self.num_tasks + 1)

    @property
    def trains_on_task_alone(self) -> bool:
        """Whether the batches of `index` hold samples of the current task only."""
        return True

    @property
    def tasks_in_training(self) -> range:
        """The tasks (1-based) whose training data the current task trains on."""
        return range(self.task, self.task + 1)

    def training_data(self, task: int) -> Dataset:
        """Return the training samples of `task`."""
        return self.benchmark.task_data(task, "train")

    def make_replay_dataset(self, data: Dataset) -> Dataset:
        """Return the dataset that plan indices point into: `data`, then other samples to read."""
        return data

    def training_size(self, task: int) -> int:
        """Return the number of samples of `training_data(task)` without loading them."""
        return self.benchmark.task_size(task, "train")

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Return the epoch's plan arrays, one dictionary per segment (batches of one shape)."""
        batch_size = self.benchmark.batch_size_of(task)
        full, partial = batch_order(self.random, task, epoch, num_samples, batch_size)
        steps = self.training.steps(task)
        if steps is not None:
            left = max(0, steps - (epoch - 1) * (len(full) + len(partial)))
            full, partial = full[:left], partial[: max(0, left - len(full))]
        return [{"index": order} for order in (full, partial) if len(order)]

    def batches(self, task: int) -> int:
        """Return the number of batches that a task is trained on, in all its epochs."""
        steps = self.training.steps(task)
        return self.training.epochs(task) * self.batches_in_epoch(task) if steps is None else steps

    def epochs(self, task: int) -> int:
        """Return the number of a task's epochs; `training.steps_per_task` may end within one."""
        return math.ceil(self.batches(task) / self.batches_in_epoch(task))

    def batches_in_epoch(self, task: int) -> int:
        """Return the number of batches of a whole epoch of a task."""
        return math.ceil(self.training_size(task) / self.benchmark.batch_size_of(task))

    def samples_per_step(self) -> int:
        """Return the largest number of samples that a step passes through the network."""
        return self.benchmark.largest_batch_size

    def hparams(self) -> dict[str, float]:
        """Return the scalars that enter the arithmetic of the current task's steps."""
        scalars = {name: float(getattr(self, name)) for name in self.hparam_names}
        scalars |= self.optimizer.hparams()
        task = max(self.task, 1)
        scalars["lr"] = self.training.learning_rate(self.optimizer.lr_of(task), task)
        if self.training.grad_clip is not None:
            scalars["grad_clip"] = float(self.training.grad_clip)
        return scalars

    @property
    def learning_rate(self) -> float:
        """The current task's learning rate, before a schedule within the task."""
        return self.hparams()["lr"]

    def initial_weights(self) -> dict[str, np.ndarray]:
        """Return canonical name -> initial weight of the run, the same at every call."""
        shapes, initialization = self.engine.parameter_shapes(), self.backbone.initialization
        weights = draw_initial_weights(shapes, initialization, self.random)
        if any(self.backbone.keeps(name) for name in shapes):
            built = self.engine.built_weights()
            weights |= {name: w for name, w in built.items() if self.backbone.keeps(name)}
        return weights

    # ---- evaluation

    @property
    def measured_on(self) -> str:
        """The data of the accuracy matrix, "test" or "validation"."""
        chosen = (callback.measured_on for callback in self.callbacks)
        return next(filter(None, chosen), self.benchmark.evaluation_split)

    @property
    def selected_on(self) -> str | None:
        """The data by which a callback chooses what tasks end with; None = no callback does."""
        return next(filter(None, (callback.selected_on for callback in self.callbacks)), None)

    def prepare_evaluation(self) -> None:
        """Make ready what evaluation needs at this moment, such as class means.

        Called whenever accuracies are measured, at a task's end and within it.
        """

    @abstractmethod
    def features(self, x: np.ndarray) -> np.ndarray:
        """Return the classifier's inputs (N, D) for stored images (N, H, W, C), in eval mode."""

    @abstractmethod
    def evaluation_logits(self, params: Any, stats: Any, arrays: Any, x: Any) -> Any:
        """Return (B, C) scores; the prediction is the class with the largest score.

        Args:
            params, stats: `evaluation_weights` of the task.
            arrays: `evaluation_arrays` of the task.
            x: (B, H, W, C) inputs.
        """

    def evaluation_weights(self, task: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters and statistics to evaluate `task` with: the current ones."""
        return self.params, self.stats

    def evaluation_arrays(self, task: int) -> Any:
        """Return additional arrays that `evaluation_logits` needs for `task`, or None."""
        return None

    def evaluated_tasks(self) -> range:
        """Return the tasks (1-based) to evaluate for the next row of the matrix."""
        every = range(1, self.num_tasks + 1)
        if self.task == 0 or self.training.evaluate_on == "all":
            return every
        ahead = 1 if self.training.evaluate_on == "seen_and_next" else 0
        return every[: self.task + ahead]

    def training_mask(self) -> np.ndarray | None:
        """Return (T, C) bool: the classes in the training softmax of each task; None = all."""
        class_mask = self.benchmark.class_mask
        if class_mask is None or self.benchmark.scenario == "task":
            return class_mask
        seen = self._seen_classes()
        return None if seen is None else np.tile(seen, (self.num_tasks, 1))

    def evaluation_mask(self, task: int) -> np.ndarray | None:
        """Return (C,) bool: the classes that can be predicted for `task`; None = all."""
        class_mask = self.benchmark.class_mask
        if class_mask is None:
            return None
        return class_mask[task - 1] if self.benchmark.scenario == "task" else self._seen_classes()

    def _seen_classes(self) -> np.ndarray | None:
        class_mask = self.benchmark.class_mask
        if self.benchmark.softmax_over == "all" or self.task == 0 or class_mask is None:
            return None
        return np.logical_or.reduce(class_mask[: self.task])

    # ---- the state of the run

    @property
    def names(self) -> dict[str, str]:
        """The names of algorithm, benchmark, backbone and backend."""
        return {
            "algo": self.name,
            "benchmark": self.benchmark.name,
            "backbone": self.backbone.name,
            "backend": self.backend,
        }

    @property
    def num_tasks(self) -> int:
        """Length of the stream."""
        return self.benchmark.num_tasks

    @property
    def task(self) -> int:
        """The task (1-based) that is being trained, or the last one; 0 before the first."""
        return self.progress.task

    @property
    def accuracy_matrix(self) -> np.ndarray:
        """(T+1, T) accuracies, fractions; row 0 is the untrained model, NaN = not measured."""
        return self.progress.accuracy_matrix

    @property
    def params(self) -> dict[str, Any]:
        """Canonical name -> current parameter, in the framework's layout."""
        return self.engine.params

    @property
    def stats(self) -> dict[str, Any]:
        """Canonical name -> BatchNorm statistic, in the framework's layout."""
        return self.engine.stats

    @property
    def state(self) -> Any:
        """The algorithm's NamedTuple, which its steps read and write."""
        return self.engine.state

    @state.setter
    def state(self, state: Any) -> None:
        self.engine.state = state

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Return parameters, statistics, optimizer and algorithm state by canonical name."""
        return self.engine.export_arrays()

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what `export_arrays` returned."""
        self.engine.import_arrays(arrays)

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Load the weights of another run into an algorithm that has not been run.

        This prepares the data and builds the network. Optimizer and algorithm state are fresh. A
        later call of `fit` starts from initial weights again.

        Args:
            weights: canonical name -> float32 array of parameters and BatchNorm statistics, as
                `seqrun.records.checkpoint.read_weights` returns.

        Raises:
            CheckpointError: they belong to another network.
        """
        self.benchmark.prepare(self.random)
        self.engine.start()
        self.engine.set_weights(self.initial_weights())
        own = weights_of(self.export_arrays())
        check_same_arrays(weights, own, foreign="is not in this network")
        self.engine.set_weights(weights)

    # ---- hooks

    def on_before_setup(self) -> None: ...
    def on_after_setup(self) -> None: ...
    def on_before_fit(self) -> None: ...
    def on_after_fit(self) -> None: ...
    def on_before_task(self) -> None: ...
    def on_after_task(self) -> None: ...
    def on_before_epoch(self) -> None: ...
    def on_after_epoch(self) -> None: ...
    def on_before_chunk(self, chunk: Chunk) -> None: ...
    def on_after_chunk(self, chunk: Chunk) -> None: ...
    def on_before_training_step(self, step: Step) -> None: ...
    def on_after_training_step(self, step: Step) -> None: ...
    def on_before_backward(self, step: Step) -> None: ...
    def on_after_backward(self, step: Step) -> None: ...
    def on_before_optimizer_step(self, step: Step) -> None: ...
    def on_after_optimizer_step(self, step: Step) -> None: ...
    def on_before_validation(self) -> None: ...
    def on_after_validation(self) -> None: ...
    def on_before_teardown(self) -> None: ...
    def on_after_teardown(self) -> None: ...


def _dispatching(hook: str) -> Callable[..., None]:
    def call(self: BaseAlgorithm, *args: Any) -> None:
        self.dispatch(hook, *args)

    call.__name__ = f"{hook}_callbacks"
    call.__doc__ = f"Call {hook} of every callback; override this to decide whether and when."
    return call


for _hook in HOOKS:
    setattr(BaseAlgorithm, f"{_hook}_callbacks", _dispatching(_hook))


def check_overrides(kind: type) -> None:
    """Raise ConfigError if a class overrides a renamed method, or a hook with other arguments.

    Args:
        kind: class of an algorithm, a callback or an optimizer.
    """
    for base, renamed, methods in (
        (BaseAlgorithm, RENAMED_IN_ALGORITHMS, HOOKS),
        (BaseCallback, RENAMED_IN_CALLBACKS, (*HOOKS, *CALLBACK_STATE_METHODS)),
        (BaseOptimizer, RENAMED_IN_OPTIMIZERS, ()),
    ):
        if not issubclass(kind, base):
            continue
        for name, remedy in renamed.items():
            if hasattr(kind, name):
                raise ConfigError(f"{kind.__name__}.{name}: is no longer called: override {remedy}")
        for name in methods:
            _check_arguments(kind, base, name)


def _check_arguments(kind: type, base: type, name: str) -> None:
    """Raise ConfigError if a method cannot be called with the arguments of the base's method."""
    own = getattr(kind, name)
    if own.__module__.startswith("seqrun."):
        return
    given, wanted = inspect.signature(own), inspect.signature(getattr(base, name))
    has_no_self = isinstance(inspect.getattr_static(kind, name), (staticmethod, classmethod))
    if "algorithm" in given.parameters or not _accepts(given, len(wanted.parameters) - has_no_self):
        raise ConfigError(
            f"{kind.__name__}.{name}({', '.join(given.parameters)}): must be "
            f"{name}({', '.join(wanted.parameters)}): "
            + (
                "a callback gets the run; the algorithm is run.algorithm"
                if base is BaseCallback
                else "an algorithm's own hooks get no algorithm, because it is self"
            )
        )


def _accepts(signature: inspect.Signature, count: int) -> bool:
    """Return whether a function can be called with `count` positional arguments."""
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True

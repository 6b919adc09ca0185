"""BaseAlgorithm: a method, its parts, and what it overrides."""

from __future__ import annotations

import inspect
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

MOST_TASKS = 10_000
# What could be overridden by another name before: a class that still does is refused.
RENAMED_OF_ALGORITHMS = {
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
RENAMED_OF_CALLBACKS = {
    "pause_every": "every_n_steps",
    "on_pause": "on_every_n_steps(self, run, step)",
}
STATE_OF_CALLBACKS = ("export_state", "check_state", "import_state")


class NoState(NamedTuple):
    """The state of an algorithm that keeps nothing between steps."""


@dataclass(kw_only=True, eq=False)
class BaseAlgorithm(ABC):
    """Train a backbone over a benchmark's stream of tasks.

    A method subclasses PyTorchBaseAlgorithm or JaxBaseAlgorithm and overrides `losses`. What is
    not a loss goes into hooks of the same names as the callbacks' (see BaseCallback), without
    their argument `run`: at every event the algorithm's own hook comes first.

    Args:
        benchmark: the stream.
        backbone, optimizer: of the same backend as the algorithm.
        callbacks, loggers: run in the order given.
        training: epochs, schedule, clipping and evaluation.
        seed: root of every random stream, >= 0.
        streams: random stream -> seed of its own (see seqrun.plan.STREAMS).
        device: "auto", "cpu" or "cuda".
        num_threads: CPU threads, >= 1; None = by the engine's fixed rule.
        run_dir: where loggers keep files; None = nowhere.
        config: the resolved configuration, for records only.
        config_hash: identifies the experiment in its checkpoints.

    Attributes:
        engine: runs the steps on the device.
        progress: where the run stands and what it has measured.
        random: every random decision is drawn from it.
        replay_dataset: on the host, what plan indices point into; the first `num_current` samples
            are the current task's training data.
        persistent: see `initial_persistent_state`.
        dispatch: calls a hook of all callbacks; set by the Trainer.

    Raises:
        ConfigError: parts that do not fit together.
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
    """Arguments, numbers, that enter the arithmetic of a step: `step.hparams` has them."""
    vectorizable: ClassVar[tuple[str, ...]] = ()
    """Arguments, numbers, in whose values runs may differ that share their compiled programs.

    Such a value reaches compiled code as an argument (`hparams`, or data and state that it made)
    and is never read while one is traced, but for being None or 0, which keeps runs apart.
    """
    batch_names: ClassVar[tuple[str, ...]] = ("index",)
    """Plan arrays that are rows of the replay dataset: `step.batches` holds their samples.

    These samples are augmented, if the benchmark says so; `step.dataset` is as it is stored.
    """
    steps_per_batch: int = field(init=False, default=1, repr=False)
    """Training steps that are planned for each batch of the current task."""
    is_compilable: ClassVar[bool] = True
    """Whether a step is short enough for PyTorch to compile as one program."""
    scenarios: ClassVar[tuple[str, ...]] = SCENARIOS
    """Scenarios that the algorithm can work in."""
    scenarios_reason: ClassVar[str] = ""
    """Why not in the others."""

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
                    f"{part}={value.name}: is of backend {value.backend}, "
                    f"the algorithm {self.name} of backend {self.backend}"
                )
        if self.benchmark.scenario not in self.scenarios:
            raise ConfigError(
                f"benchmark.scenario={self.benchmark.scenario!r}: must be "
                f"{' or '.join(self.scenarios)} with algo={self.name}, {self.scenarios_reason}"
            )
        if self.benchmark.knows("input_shape"):  # else it is known after `prepare`
            self.backbone.check_input(self.benchmark.input_shape)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        if self.num_threads is not None:
            whole("num_threads", self.num_threads, 1)
        if self.num_tasks > MOST_TASKS:
            raise ConfigError(
                f"benchmark.num_tasks={self.num_tasks}: must be at most {MOST_TASKS}, for the "
                "accuracy matrix has its square of entries"
            )
        self.training.check_tasks(self.num_tasks)
        self.random = RandomStreams(self.seed, self.streams)
        self.progress = Progress.start(
            self.num_tasks, task_aware=self.benchmark.scenario == "class"
        )
        self.engine = self.engine_type(self)  # type: ignore[call-arg]  # Engine takes none
        check_overrides(type(self))
        for callback in self.callbacks:
            check_overrides(type(callback))
            callback.check(self)

    @abstractmethod
    def fit(self, resume_from: Checkpoint | None = None) -> RunRecord:
        """Train over the whole stream and return the record.

        Args:
            resume_from: where a run of this very experiment stood; None = from the beginning.

        Raises:
            TrainingDiverged: the loss, or a parameter at a task's end, became NaN or infinite.
        """

    # ---- what a method overrides, besides the hooks; arrays are those of its framework

    @abstractmethod
    def losses(self, step: Step) -> Losses:
        """Return the step's task loss, the loss whose gradient is taken, and the logits."""

    @abstractmethod
    def backward(self, step: Step) -> None:
        """Compute `step.loss`, `step.logits` and `step.gradients` from `losses`."""

    @abstractmethod
    def optimizer_step(self, step: Step) -> None:
        """Clip `step.gradients` and move `step.params`."""

    def build_module(self) -> Any:
        """Return the network with all that trains: the backbone's, or one that holds it."""
        return self.backbone.build(self.benchmark.input_shape, self.benchmark.num_classes)

    def initial_state(self) -> Any:
        """Return the NamedTuple that the run starts with; steps read it and replace it."""
        return NoState()

    def initial_persistent_state(self) -> Any:
        """Return the NamedTuple of what lives on the device but no training step reads, or None.

        It is carried from task to task, as "kept/..." in checkpoints, and costs a step nothing.
        """
        return None

    def trained_tasks(self) -> range:
        """Return the tasks (1-based) that are trained on, with a row of the matrix after each."""
        return range(1, self.num_tasks + 1)

    @property
    def trains_on_task_alone(self) -> bool:
        """Whether the batches of `index` are of the current task's samples and of no others."""
        return True

    def training_data(self, task: int) -> Dataset:
        """Return the samples that `task` is trained on."""
        return self.benchmark.task_data(task, "train")

    def make_replay_dataset(self, data: Dataset) -> Dataset:
        """Return what the task's plan indices point into: `data`, then what else may be read."""
        return data

    def training_size(self, task: int) -> int:
        """Return the number of samples of `training_data(task)` without loading them."""
        return self.benchmark.task_size(task, "train")

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Return the epoch's plan arrays: parts with batches of one shape."""
        batch_size = self.benchmark.batch_size_of(task)
        full, partial = batch_order(self.random, task, epoch, num_samples, batch_size)
        return [{"index": order} for order in (full, partial) if len(order)]

    def samples_per_step(self) -> int:
        """Return the most samples that a step runs through the network."""
        return self.benchmark.largest_batch_size

    def hparams(self) -> dict[str, float]:
        """Return the scalars that enter the arithmetic of this task's steps."""
        scalars = {name: float(getattr(self, name)) for name in self.hparam_names}
        scalars |= self.optimizer.hparams()
        scalars["lr"] = self.training.learning_rate(self.optimizer.lr, max(self.task, 1))
        if self.training.grad_clip is not None:
            scalars["grad_clip"] = float(self.training.grad_clip)
        return scalars

    def initial_weights(self) -> dict[str, np.ndarray]:
        """Return the run's initial canonical weights, the same at every call."""
        shapes, initialization = self.engine.parameter_shapes(), self.backbone.initialization
        weights = draw_initial_weights(shapes, initialization, self.random)
        if any(self.backbone.keeps(name) for name in shapes):
            built = self.engine.built_weights()
            weights |= {name: w for name, w in built.items() if self.backbone.keeps(name)}
        return weights

    # ---- evaluation

    @abstractmethod
    def features(self, x: np.ndarray) -> np.ndarray:
        """Return the (N, D) classifier's inputs of stored images (N, H, W, C), in eval mode."""

    @abstractmethod
    def evaluation_logits(self, params: Any, stats: Any, arrays: Any, x: Any) -> Any:
        """Return the (B, C) numbers of which a prediction is the largest.

        Args:
            params, stats: `evaluation_weights` of the task.
            arrays: `evaluation_arrays` of the task.
            x: (B, H, W, C) inputs.
        """

    def evaluation_weights(self, task: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters and statistics that `task` is evaluated with: the live ones."""
        return self.params, self.stats

    def evaluation_arrays(self, task: int) -> Any:
        """Return what `evaluation_logits` reads besides weights and samples, or None."""
        return None

    def evaluated_tasks(self) -> range:
        """Return the tasks (1-based) that the next row of the matrix is measured on."""
        every = range(1, self.num_tasks + 1)
        if self.task == 0 or self.training.evaluate_on == "all":
            return every
        ahead = 1 if self.training.evaluate_on == "seen_and_next" else 0
        return every[: self.task + ahead]

    def training_mask(self) -> np.ndarray | None:
        """Return the (T, C) classes that the softmax of a sample of each task runs over."""
        class_mask = self.benchmark.class_mask
        if class_mask is None or self.benchmark.scenario == "task":
            return class_mask
        seen = self._seen_classes()
        return None if seen is None else np.tile(seen, (self.num_tasks, 1))

    def evaluation_mask(self, task: int) -> np.ndarray | None:
        """Return the (C,) classes that a test sample of `task` may be given."""
        class_mask = self.benchmark.class_mask
        if class_mask is None:
            return None
        return class_mask[task - 1] if self.benchmark.scenario == "task" else self._seen_classes()

    def _seen_classes(self) -> np.ndarray | None:
        class_mask = self.benchmark.class_mask
        if self.benchmark.softmax_over == "all" or self.task == 0 or class_mask is None:
            return None
        return np.logical_or.reduce(class_mask[: self.task])

    # ---- the run as it stands

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
        """The task (1-based) in training, or the last one; 0 before the first."""
        return self.progress.task

    @property
    def accuracy_matrix(self) -> np.ndarray:
        """(T+1, T) accuracies, fractions; row 0 is the untrained model, NaN = not measured."""
        return self.progress.accuracy_matrix

    @property
    def params(self) -> dict[str, Any]:
        """Canonical name -> live parameter, in the framework's layout."""
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
        """Undo `export_arrays`."""
        self.engine.import_arrays(arrays)

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take the network of another run; the algorithm was made and not run yet.

        The data are prepared and the network is built; optimizer and algorithm state are fresh,
        and `fit` would start from initial weights again.

        Args:
            weights: canonical name -> float32 array of parameters and BatchNorm statistics, as
                `seqrun.records.checkpoint.read_weights` returns.

        Raises:
            CheckpointError: they are of another network.
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
    call.__doc__ = f"Call every callback's {hook}; override it to decide whether and when."
    return call


for _hook in HOOKS:
    setattr(BaseAlgorithm, f"{_hook}_callbacks", _dispatching(_hook))


def check_overrides(kind: type) -> None:
    """Raise ConfigError if a class overrides what is called no longer, or with other arguments.

    Args:
        kind: of algorithm or callback.
    """
    is_callback = issubclass(kind, BaseCallback)
    renamed = RENAMED_OF_CALLBACKS if is_callback else RENAMED_OF_ALGORITHMS
    for name, remedy in renamed.items():
        if hasattr(kind, name):
            raise ConfigError(f"{kind.__name__}.{name}: is no longer called: override {remedy}")
    base: type = BaseCallback if is_callback else BaseAlgorithm
    for name in (*HOOKS, *STATE_OF_CALLBACKS) if is_callback else HOOKS:
        own = getattr(kind, name)
        if own.__module__.startswith("seqrun."):
            continue
        given, wanted = inspect.signature(own), inspect.signature(getattr(base, name))
        if "algorithm" in given.parameters or not _takes(given, len(wanted.parameters)):
            raise ConfigError(
                f"{kind.__name__}.{name}({', '.join(given.parameters)}): must be "
                f"{name}({', '.join(wanted.parameters)}): "
                + (
                    "a callback is given the run, whose method is run.algorithm"
                    if is_callback
                    else "an algorithm's own hooks are given no algorithm: it is self"
                )
            )


def _takes(signature: inspect.Signature, count: int) -> bool:
    """Return whether a function can be called with so many positional arguments."""
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True

"""BaseAlgorithm: what happens when, on any framework."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from seqrun.training.options import TrainingOptions
from seqrun.training.step import Step
from seqrun.backbones.base import BaseBackbone, draw_initial_weights, multiply_adds
from seqrun.benchmarks import BaseBenchmark, Dataset
from seqrun.benchmarks.base import SCENARIOS
from seqrun.training.callback import EVENTS, STEP_EVENTS, BaseCallback
from seqrun.training.dispatch import CallbackDispatch
from seqrun.records.checkpoint import Checkpoint
from seqrun.checks import ConfigError, one_of, whole
from seqrun.training.limits import fits, parts_of, refuse_what_cannot_fit, weights_part
from seqrun.loggers.base import BaseLogger, RunInfo
from seqrun.optimizers.base import BaseOptimizer
from seqrun.plan import Chunk, RandomStreams, augmentation, batch_order, chunks
from seqrun.records.results import RunRecord


MOST_TASKS = 10_000
MOST_COPIES = 10
"""Arrays of a weight's size in a run's states, besides one per task: no algorithm has as many."""


class TrainingDiverged(RuntimeError):
    """Loss or parameters became NaN or infinite; the message names task, epoch and step."""


@dataclass(kw_only=True, eq=False)
class BaseAlgorithm(CallbackDispatch, BaseCallback):
    """Train a backbone over a benchmark's stream of tasks.

    An algorithm is a callback of its own run: its hooks come first at every event. A method is
    written by subclassing one of the engines, PyTorchBaseAlgorithm or JaxBaseAlgorithm.

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
    gathered_steps: ClassVar[int] = 1
    """Steps whose inputs the engine holds at a time."""
    hyper_names: ClassVar[tuple[str, ...]] = ()
    vectorizable: ClassVar[tuple[str, ...]] = ()
    """Arguments, numbers, in whose values runs may differ that share their compiled programs.

    Such a value reaches compiled code as an argument (`hyper`, or data and state that it made) and
    is never read while one is traced, but for being None or 0, which keeps runs apart.
    """
    pool_reads: ClassVar[tuple[str, ...]] = ("index",)
    """Plan arrays that are rows of the pool: a step finds their samples in `step.reads`.

    These samples are augmented, if the benchmark says so; `step.pool` is as it is stored.
    """
    scenarios: ClassVar[tuple[str, ...]] = SCENARIOS
    """Scenarios that the algorithm can work in."""
    scenarios_reason: ClassVar[str] = ""
    """Why not in the others."""

    device_kind: str = field(init=False, default="cpu")
    kept: Any = field(init=False, default=None)

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
        self.training.check_tasks(self.benchmark.num_tasks)
        self.random = RandomStreams(self.seed, self.streams)
        self.num_tasks = self.benchmark.num_tasks
        if self.num_tasks > MOST_TASKS:
            raise ConfigError(
                f"benchmark.num_tasks={self.num_tasks}: must be at most {MOST_TASKS}, for the "
                "accuracy matrix has its square of entries"
            )
        self.task = self.epoch = self.global_step = self.total_steps = 0
        self.samples_seen = self.gradient_steps = self.memory_bytes = 0
        self._checkpoint: Checkpoint | None = None
        self.task_is_done = False
        self.epoch_first_step = self.epoch_steps = 0
        self.epoch_loss_sum = self.epoch_samples = 0.0
        self.task_losses: list[float] = []
        self.final_loss: float | None = None
        self.timing = dict.fromkeys(
            ("setup_seconds", "compile_seconds", "train_seconds", "eval_seconds"), 0.0
        )
        self.execution: dict[str, Any] = {"strategy": "sequential"}
        shape = (self.num_tasks + 1, self.num_tasks)
        self.accuracy_matrix = np.full(shape, np.nan)
        class_incremental = self.benchmark.scenario == "class"
        self.accuracy_matrix_task_aware = np.full(shape, np.nan) if class_incremental else None
        self.stop_task = False  # set by a callback: the epoch that ends is the task's last
        for callback in self.callbacks:
            callback.check(self)

    # ---- what an engine implements

    @classmethod
    def find_device(cls, device: str) -> str:
        """Return "cpu" or "cuda", the kind of device that `device` means here.

        Raises:
            ConfigError: "cuda" is asked for and the framework finds no GPU.
        """
        raise NotImplementedError

    @classmethod
    def new_ensemble(cls) -> Any:
        """Return a new `ensemble.BaseEnsemble` for several runs; None = the engine has none."""
        return None

    def device_bytes(self) -> int | None:
        """Return the bytes of a device's own memory; None: it is the machine's."""
        return None

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return canonical name -> canonical shape of every parameter."""
        raise NotImplementedError

    def start_engine(self) -> None:
        """Choose device and threads and build the module (no weights yet)."""
        raise NotImplementedError

    def carried_bytes(self, *, states: bool) -> int:
        """Return the size of the weights, and of what else a run carries if `states`.

        From shapes alone: nothing large is made, and the data need not be there if the shapes of
        inputs and outputs are known.
        """
        raise NotImplementedError

    def weights_are_finite(self) -> bool:
        """Return whether all parameters and statistics are finite numbers."""
        raise NotImplementedError

    def built_weights(self) -> dict[str, np.ndarray]:
        """Return the parameters and statistics that the module was built with, canonical."""
        raise NotImplementedError

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Start from canonical `weights`, fresh optimizer and algorithm state.

        A statistic that is not among the weights starts fresh: a mean at 0, a variance at 1.
        What is `kept` stays as it is.
        """
        raise NotImplementedError

    def reset_optimizer(self) -> None:
        """Make the optimizer's state fresh."""
        raise NotImplementedError

    def load_pool(self, dataset: Dataset) -> None:
        """Put the samples that plan indices point into on the device."""
        raise NotImplementedError

    def run_chunk(self, chunk: Chunk) -> None:
        """Run the chunk's training steps; fill in its losses and correct counts."""
        raise NotImplementedError

    def count_correct(self, task: int, masks: list[np.ndarray | None]) -> list[int]:
        """Count, per mask (C,) of allowed classes, what is right on a task's test data."""
        raise NotImplementedError

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return the (N, D) classifier's inputs of stored images (N, H, W, C), in eval mode."""
        raise NotImplementedError

    def start_trace(self, folder: Path) -> None:
        """Begin to trace what the framework does, into `folder`."""
        raise NotImplementedError

    def stop_trace(self) -> None:
        """End it and write the trace."""
        raise NotImplementedError

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Return parameters, statistics, optimizer and algorithm state by canonical name."""
        raise NotImplementedError

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Undo `export_arrays`."""
        raise NotImplementedError

    def stop_engine(self) -> None:
        """Undo the process-wide settings of `start_engine`."""

    # ---- what an algorithm may override, besides the hooks

    def initial_kept(self) -> Any:
        """Return the NamedTuple of what lives on the device but no training step reads, or None.

        It is carried from task to task and exported as "kept/...", but costs a step nothing.
        """
        return None

    def evaluation_weights(self, task: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters and statistics that `task` is evaluated with: the live ones."""
        return self.params, self.stats  # type: ignore[attr-defined]  # an engine's

    def evaluation_reads(self, task: int) -> Any:
        """Return the arrays that `evaluation_logits` reads besides weights and samples, or None."""
        return None

    def trained_tasks(self) -> range:
        """Return the tasks (1-based) that the flow trains on and measures a row after."""
        return range(1, self.num_tasks + 1)

    @property
    def trains_on_task_alone(self) -> bool:
        """Whether the batches of `index` are of the current task's samples and of no others."""
        return True

    def training_data(self, task: int) -> Dataset:
        """Return the samples that `task` is trained on."""
        return self.benchmark.task_data(task, "train")

    def task_pool(self, data: Dataset) -> Dataset:
        """Return what the task's plan indices point into: `data`, then what else may be read."""
        return data

    def training_size(self, task: int) -> int:
        """Return the number of samples of `training_data(task)` without loading them."""
        return self.benchmark.task_size(task, "train")

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Return the epoch's plan arrays: stretches of batches of one shape."""
        batch_size = self.benchmark.batch_size_of(task)
        full, partial = batch_order(self.random, task, epoch, num_samples, batch_size)
        return [{"index": order} for order in (full, partial) if len(order)]

    def samples_per_step(self) -> int:
        """Return the most samples that a step runs through the network."""
        return self.benchmark.largest_batch_size

    def hyper(self) -> dict[str, float]:
        """Return the scalars that enter the arithmetic of this task's steps."""
        scalars = {name: float(getattr(self, name)) for name in self.hyper_names}
        scalars |= self.optimizer.hparams()
        scalars["lr"] = self.training.learning_rate(self.optimizer.lr, max(self.task, 1))
        if self.training.grad_clip is not None:
            scalars["grad_clip"] = float(self.training.grad_clip)
        return scalars

    # ---- the flow

    def fit(self, resume_from: Checkpoint | None = None) -> RunRecord:
        """Train over the whole stream and return the record.

        Args:
            resume_from: where a run of this very experiment stood; None = from the beginning.

        Raises:
            TrainingDiverged: the loss, or a parameter at a task's end, became NaN or infinite.
        """
        self._checkpoint = resume_from
        self.collect_callbacks()
        self._hooks = {event: self._hooks_of(event) for event in EVENTS}
        self._pausing = [c for c in self.callbacks if c.pause_every is not None]
        self._backward = self.step_call(self.backward)
        self._optimizer_step = self.step_call(self.optimizer_step)
        status = "failed"
        try:
            self._event("setup", self.setup)
            self._event("fit", self._fit_tasks)
            status = "completed"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self._event("teardown", lambda: self._teardown(status))
        return RunRecord.of(self)

    def setup(self) -> None:
        """Prepare data, device and weights."""
        started = time.perf_counter()
        self.benchmark.prepare(self.random)
        self.start_engine()
        self.check_lengths()
        self.plan_lengths()
        refuse_what_cannot_fit(parts_of(self))
        self.set_weights(self.initial_weights())
        self.kept = self.initial_kept()
        refuse_what_cannot_fit(parts_of(self))  # now with the states
        if self._checkpoint is not None:
            self._checkpoint.restore_counters(self)
            self._checkpoint.restore_arrays(self)
            self._checkpoint.check_parts(self, self._run_info())
        for logger in self.loggers:
            logger.open(self._run_info())
        if self._checkpoint is not None:
            self._checkpoint.restore_loggers(self)
        self.timing["setup_seconds"] += time.perf_counter() - started

    def initial_weights(self) -> dict[str, np.ndarray]:
        """Return the run's initial canonical weights, the same at every call."""
        shapes, initialization = self.parameter_shapes(), self.backbone.initialization
        weights = draw_initial_weights(shapes, initialization, self.random)
        if any(self.backbone.keeps(name) for name in shapes):
            built = self.built_weights()
            weights |= {name: w for name, w in built.items() if self.backbone.keeps(name)}
        return weights

    def _fit_tasks(self) -> None:
        if self._checkpoint is None:
            self._validate()
        elif self.task_is_done:
            self._checkpoint.restore_callbacks(self)
        for task in self.trained_tasks():
            if task < self.task or (task == self.task and self.task_is_done):
                continue
            self.task, self.task_is_done = task, False
            self._event("task", self._fit_task)
            self._refuse_infinite_weights()  # an algorithm may have moved them after the task
            self.task_is_done = True
            self._validate()

    def _is_within(self, checkpoint: Checkpoint | None) -> bool:
        """Return whether the run is to continue within the task that is beginning."""
        return checkpoint is not None and not checkpoint.task_is_done

    def _fit_task(self) -> None:
        started = time.perf_counter()
        data = self.training_data(self.task)
        self.num_current = len(data.y)
        self.host_pool = self.task_pool(data)
        self.load_pool(self.host_pool)
        self.timing["setup_seconds"] += time.perf_counter() - started
        if self.training.reinit_optimizer == "task":
            self.reset_optimizer()
        epochs, self.stop_task = self.training.epochs(self.task), False
        for epoch in range(1, epochs + 1):
            checkpoint = self._checkpoint
            if self._is_within(checkpoint) and epoch < checkpoint.epoch:
                self.plan_epoch(self.task, epoch, self.num_current)  # for what later ones rest on
                continue
            self.epoch = epoch
            if self.training.reinit_optimizer == "epoch":
                self.reset_optimizer()
            self._event("epoch", self._fit_epoch)
            if self.stop_task:
                break
            if self.training.evaluate_every == "epoch" and epoch < epochs:
                self._validate()
        self._refuse_infinite_weights()
        self.task_losses.append(self.epoch_loss_sum / self.epoch_samples)

    def _fit_epoch(self) -> None:
        parts = self.plan_epoch(self.task, self.epoch, self.num_current)
        crop, flip = self.benchmark.crop_padding, self.benchmark.horizontal_flip
        if crop or flip:
            position = self.task, self.epoch
            parts = augmentation(self.random, *position, parts, self.pool_reads, crop, flip)
        self.epoch_steps = sum(len(part["index"]) for part in parts)
        if self._is_within(self._checkpoint):
            # Hooks before the task and the epoch have run again: whatever they did is undone.
            self._checkpoint.restore_arrays(self)
            self._checkpoint.restore_callbacks(self)
        else:
            self.epoch_first_step = self.global_step
            self.epoch_loss_sum = self.epoch_samples = 0.0
        self._checkpoint = None
        for chunk in chunks(self.task, self.epoch, self.epoch_first_step, parts, self.chunk_steps):
            if chunk.first_step >= self.global_step:
                self._event("chunk", partial(self._fit_chunk, chunk), chunk)

    def _fit_chunk(self, chunk: Chunk) -> None:
        started = time.perf_counter()
        elsewhere = self.timing["compile_seconds"] + self.timing["eval_seconds"]
        self.run_chunk(chunk)
        elsewhere -= self.timing["compile_seconds"] + self.timing["eval_seconds"]
        self.timing["train_seconds"] += time.perf_counter() - started + elsewhere
        self._refuse_divergence(chunk)
        self.global_step += chunk.steps
        self.gradient_steps += chunk.steps
        self.samples_seen += chunk.steps * chunk.batch_size
        assert chunk.losses is not None
        self.epoch_loss_sum += float(chunk.losses.sum(dtype=np.float64)) * chunk.batch_size
        self.epoch_samples += chunk.steps * chunk.batch_size
        self.final_loss = float(chunk.losses[-1])

    def training_step(self, step: Step) -> None:
        """Run one step: the same events in the same order on both frameworks."""
        self._event("training_step", lambda: self._step_events(step), step)

    def _step_events(self, step: Step) -> None:
        self._event("backward", lambda: self._backward(step), step)
        self._event("optimizer_step", lambda: self._optimizer_step(step), step)

    def step_call(self, function: Callable[[Step], None]) -> Callable[[Step], None]:
        """Return `function`, a part of a training step, as the engine calls it."""
        return function

    def backward(self, step: Step) -> None:
        """Compute `step.loss`, `step.logits` and `step.gradients`."""
        raise NotImplementedError

    def optimizer_step(self, step: Step) -> None:
        """Clip `step.gradients` and move `step.params`."""
        raise NotImplementedError

    def pieces(self, chunk: Chunk) -> list[Chunk]:
        """Return the chunk cut after each step at which a callback wants to look at the model."""
        first, steps = chunk.first_step, chunk.steps
        every = [c.pause_every for c in self._pausing]
        ends = [s for s in range(1, steps) if any((first + s) % e == 0 for e in every)]
        arrays = chunk.arrays.items()
        return [
            replace(chunk, first_step=first + a, arrays={n: v[a:b] for n, v in arrays})
            for a, b in pairwise([0, *ends, steps])
        ]

    def pause(self, step: int) -> None:
        """Let callbacks look at the model after `step` steps, if that is one of theirs."""
        due = [c for c in self._pausing if step % c.pause_every == 0]
        if not due:
            return
        started = time.perf_counter()
        compiled = self.timing["compile_seconds"]
        for callback in due:
            callback.on_pause(self, step)
        compiled = self.timing["compile_seconds"] - compiled
        self.timing["eval_seconds"] += time.perf_counter() - started - compiled

    def _event(self, event: str, body: Callable[[], None], *args: Any) -> None:
        before, after = self._hooks[event]
        for hook in before:
            hook(*args)
        body()
        for hook in after:
            hook(*args)

    def _hooks_of(self, event: str) -> tuple[list[Callable], list[Callable]]:
        """Return the hooks before and after `event`: the algorithm's, then the callbacks'."""
        return self._hooks_at(f"on_before_{event}"), self._hooks_at(f"on_after_{event}")

    def _hooks_at(self, hook: str) -> list[Callable]:
        calls: list[Callable] = []
        if getattr(type(self), hook) is not getattr(BaseCallback, hook):
            own = partial(getattr(self, hook), self)
            is_of_step = hook.split("_", 2)[2] in STEP_EVENTS
            calls.append(self.step_call(own) if is_of_step else own)
        for_callbacks = f"{hook}_callbacks"
        replaced = getattr(type(self), for_callbacks) is not getattr(
            CallbackDispatch, for_callbacks
        )
        if self._overridden[hook] or replaced:
            calls.append(getattr(self, for_callbacks))
        return calls

    @property
    def has_host_step_hooks(self) -> bool:
        """Whether a callback overrides a step-level hook."""
        return any(
            self._overridden[f"on_{when}_{event}"]
            for event in STEP_EVENTS
            for when in ("before", "after")
        )

    # ---- evaluation

    def _validate(self) -> None:
        self._event("validation", self._measure_row)

    def _measure_row(self) -> None:
        started = time.perf_counter()
        compiled = self.timing["compile_seconds"]
        for task in self._evaluated_tasks():
            masks = [self.evaluation_mask(task)]
            if self.accuracy_matrix_task_aware is not None:
                masks.append(self.benchmark.class_mask[task - 1])
            counts = self.count_correct(task, masks)
            size = len(self.benchmark.task_data(task, self.benchmark.evaluation_split).y)
            self.accuracy_matrix[self.task, task - 1] = counts[0] / size
            if self.accuracy_matrix_task_aware is not None:
                self.accuracy_matrix_task_aware[self.task, task - 1] = counts[1] / size
        compiled = self.timing["compile_seconds"] - compiled
        self.timing["eval_seconds"] += time.perf_counter() - started - compiled

    def _evaluated_tasks(self) -> range:
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
        if self.benchmark.softmax_over == "all" or self.task == 0:
            return None
        return np.logical_or.reduce(self.benchmark.class_mask[: self.task])

    # ---- details

    def work_per_batch(self) -> int:
        """Return the multiply-adds of one step's forward pass."""
        images = self.benchmark.input_shape
        convolutions = self.backbone.convolutions(images)
        per_sample = multiply_adds(self.parameter_shapes(), images, convolutions)
        return per_sample * self.samples_per_step()

    @property
    def may_normalise_batches(self) -> bool:
        """Whether the backbone has BatchNorm, or is one that knows its layers when it is built."""
        return self.backbone.has_batch_statistics or "own" in self.backbone.initializations

    def check_size(self) -> None:
        """Raise ConfigError if weights and states cannot fit, as far as that is known before data.

        A module of someone else's is not made just to see how large it is.
        """
        shape, classes = self.benchmark.input_shape, self.benchmark.num_classes
        if shape is None or classes is None or "own" in self.backbone.initializations:
            return
        try:
            weights = self.carried_bytes(states=False)
        except (OverflowError, RuntimeError, TypeError) as error:  # beyond what a shape can be
            told = str(error).partition("\n")[0]
            raise ConfigError(f"{self.backbone.sized_by}: cannot be built: {told}") from error
        refuse_what_cannot_fit([weights_part(self, weights)])
        if not fits([weights_part(self, weights * (self.num_tasks + MOST_COPIES))]):
            refuse_what_cannot_fit([weights_part(self, self.carried_bytes(states=True))])

    def check_lengths_beforehand(self) -> None:
        """Prepare the data and check the lengths of batches before anything starts.

        Raises:
            ConfigError: of preparing, or of `check_lengths`.
        """
        self.benchmark.prepare(self.random)
        if not self.backbone.has_batch_statistics and self._single_samples():
            self.start_engine()  # builds the network
            self.stop_engine()
        self.check_lengths()

    def check_lengths(self) -> None:
        """Raise ConfigError if BatchNorm is given a batch of one sample; the data are prepared."""
        if self.backbone.has_batch_statistics and (wrong := self._single_samples()):
            raise ConfigError(f"{wrong}, which BatchNorm cannot normalise")

    def _single_samples(self) -> str:
        """Say which batches of training samples have one sample; "" = none."""
        for task in self.trained_tasks():
            size, batch_size = self.training_size(task), self.benchmark.batch_size_of(task)
            if batch_size == 1 or size % batch_size == 1:
                which = "every batch" if batch_size == 1 else "the last batch"
                return (
                    f"benchmark.batch_size={batch_size}: {which} of task {task} ({size} samples) "
                    "has one sample"
                )
        return ""

    def plan_lengths(self) -> None:
        """Count the run's steps and choose the length of chunks; the engine has started."""
        sizes = {t: self.training_size(t) for t in self.trained_tasks()}
        longest = 1
        for task, size in sizes.items():
            batch_size = self.benchmark.batch_size_of(task)
            longest = max(longest, size // batch_size)
            self.total_steps += math.ceil(size / batch_size) * self.training.epochs(task)
        input_bytes = 4 * self.samples_per_step() * math.prod(self.benchmark.input_shape)
        rule = self.training.chunk_steps or chunk_rule(self.work_per_batch(), input_bytes)
        self.chunk_steps = min(rule, longest)
        self.execution["chunk_steps"] = self.chunk_steps

    def _refuse_divergence(self, chunk: Chunk) -> None:
        finite = np.isfinite(chunk.losses)
        if not finite.all():
            first = int(np.argmin(finite))
            raise TrainingDiverged(
                f"the loss is {chunk.losses[first]} at task {chunk.task}, epoch {chunk.epoch}, "
                f"step {chunk.first_step + first}; a smaller optimizer.lr or training.grad_clip "
                "may help"
            )

    def _refuse_infinite_weights(self) -> None:
        """Raise TrainingDiverged if the task's last update, which no loss tells of, went wrong."""
        if not self.weights_are_finite():
            raise TrainingDiverged(
                f"the parameters are not finite after task {self.task}, epoch {self.epoch}, "
                f"step {self.global_step - 1}; a smaller optimizer.lr or training.grad_clip may "
                "help"
            )

    def _run_info(self) -> RunInfo:
        matrices = {}
        if self._checkpoint is not None:
            matrices["accuracy_matrix"] = self.accuracy_matrix.copy()
            if self.accuracy_matrix_task_aware is not None:
                aware = self.accuracy_matrix_task_aware.copy()
                matrices["accuracy_matrix_task_aware"] = aware
        return RunInfo(
            name=self.names,
            seed=self.seed,
            num_tasks=self.num_tasks,
            config=self.config,
            directory=self.run_dir,
            measured_on=self.benchmark.evaluation_split,
            resumed_at=None if self._checkpoint is None else self.global_step,
            matrices=matrices,
        )

    @property
    def names(self) -> dict[str, str]:
        """Return the names of algorithm, benchmark, backbone and backend."""
        return {
            "algo": self.name,
            "benchmark": self.benchmark.name,
            "backbone": self.backbone.name,
            "backend": self.backend,
        }

    def _teardown(self, status: str) -> None:
        self.stop_engine()
        for logger in self.loggers:
            logger.close(status)


def chunk_rule(multiply_adds_per_batch: int, input_bytes_per_batch: int) -> int:
    """Return the steps per chunk: about a quarter of a second, within 64 MiB of inputs.

    A step costs about three forward passes; 2 cores were measured at about 40 G multiply-adds
    per second. Between 1 and 1000, and never a matter of timing, so that a run always cuts its
    plan at the same places.
    """
    by_time = 1e10 / (3 * multiply_adds_per_batch)
    by_memory = 2**26 / input_bytes_per_batch
    return int(max(1, min(1000, by_time, by_memory)))

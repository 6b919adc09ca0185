"""Trainer: the one loop over tasks, epochs and chunks, on any framework."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seqrun.benchmarks.base import evaluation_sizes
from seqrun.loggers.base import BaseLogger, RunInfo
from seqrun.plan import Chunk, augmentation, chunks
from seqrun.records.checkpoint import Checkpoint
from seqrun.records.progress import Progress
from seqrun.records.results import RunRecord
from seqrun.training import limits, resume
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.callback import BaseCallback
from seqrun.training.divergence import TrainingDiverged
from seqrun.training.events import Events


class Trainer:
    """Run an algorithm over its stream of tasks; what callbacks are given as `run`.

    Making one connects the algorithm's engine with the hooks of algorithm and callbacks.

    Attributes:
        algorithm: what is run.
        progress: where it stands; the algorithm's.
        total_steps: that the run plans, known after its setup.
        epoch_steps: of the current epoch.
        stop_task: set by a callback: the epoch that ends is the task's last.
    """

    def __init__(self, algorithm: BaseAlgorithm) -> None:
        self.algorithm = algorithm
        self.progress: Progress = algorithm.progress
        self.epoch_steps = 0
        self.stop_task = False
        self._engine = algorithm.engine
        self._events = algorithm.engine.events = Events(self, algorithm)
        self._checkpoint: Checkpoint | None = None

    # ---- what callbacks see (Run)

    @property
    def task(self) -> int:
        """The task (1-based) in training, or the last one; 0 before the first."""
        return self.progress.task

    @property
    def epoch(self) -> int:
        """The epoch (1-based) of the task."""
        return self.progress.epoch

    @property
    def step(self) -> int:
        """Training steps done."""
        return self.progress.global_step

    @property
    def total_steps(self) -> int:
        """Training steps that the run plans."""
        return self._engine.total_steps

    @property
    def matrix(self) -> np.ndarray:
        """(T+1, T) accuracies, fractions; NaN = not measured."""
        return self.progress.accuracy_matrix

    @property
    def directory(self) -> Path | None:
        """Where the run keeps its files; None = nowhere."""
        return self.algorithm.run_dir

    @property
    def config_hash(self) -> str:
        """Identifies the experiment in its checkpoints."""
        return self.algorithm.config_hash

    @property
    def callbacks(self) -> Sequence[BaseCallback]:
        """The run's callbacks, in order."""
        return self.algorithm.callbacks

    @property
    def loggers(self) -> Sequence[BaseLogger]:
        """The run's loggers, in order."""
        return self.algorithm.loggers

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Give scalars to every logger, as measured after `step` steps; None = now."""
        at = self.step if step is None else step
        for logger in self.loggers:
            logger.log(values, step=at, epoch=self.epoch, task=self.task)

    def evaluate(self, task: int) -> float:
        """Return the accuracy on a task (1-based) now, a fraction, on what the matrix measures."""
        benchmark = self.algorithm.benchmark
        (correct,) = self._engine.count_correct(task, [self.algorithm.evaluation_mask(task)])
        return correct / benchmark.task_size(task, benchmark.evaluation_split)

    def record(self) -> RunRecord:
        """Return the run's record as it stands."""
        return RunRecord.of(
            self.progress,
            seed=self.algorithm.seed,
            test_sizes=evaluation_sizes(self.algorithm.benchmark),
            execution=self._engine.execution,
            device=self._engine.device_kind,
        )

    def checkpoint(self) -> Checkpoint:
        """Return a copy of everything that the run carries."""
        return resume.checkpoint_of(self, self.algorithm)

    def start_trace(self, folder: Path) -> None:
        """Begin to trace what the framework does, into `folder`."""
        self._engine.start_trace(folder)

    def stop_trace(self) -> None:
        """End the trace and write it."""
        self._engine.stop_trace()

    # ---- the loop

    def fit(self, resume_from: Checkpoint | None = None) -> RunRecord:
        """Train over the whole stream and return the record.

        Args:
            resume_from: where a run of this very experiment stood; None = from the beginning.

        Raises:
            TrainingDiverged: the loss, or a parameter at a task's end, became NaN or infinite.
        """
        status = "failed"
        try:
            with self._events.around("setup"):
                self.setup(resume_from)
            with self._events.around("fit"):
                self._validate_or_continue()
                for task in self._tasks_left():
                    self._fit_task(task)
            status = "completed"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            with self._events.around("teardown"):
                self._teardown(status)
        return self.record()

    def setup(self, resume_from: Checkpoint | None = None) -> None:
        """Prepare data, device and weights, or what a checkpoint holds; open the loggers."""
        started = time.perf_counter()
        algorithm, checkpoint = self.algorithm, resume_from
        self._checkpoint = checkpoint
        algorithm.benchmark.prepare(algorithm.random)
        self._engine.start()
        limits.check_lengths(algorithm)
        limits.plan_lengths(algorithm)
        limits.refuse_what_cannot_fit(limits.needs_of(algorithm))
        self._engine.set_weights(algorithm.initial_weights())
        algorithm.persistent = algorithm.initial_persistent_state()
        limits.refuse_what_cannot_fit(limits.needs_of(algorithm))  # now with the states
        if checkpoint is not None:
            resume.restore_progress(checkpoint, algorithm)
            resume.restore_arrays(checkpoint, algorithm)
            resume.check_parts(checkpoint, self, self.run_info())
        for logger in self.loggers:
            logger.open(self.run_info())
        if checkpoint is not None:
            resume.restore_loggers(checkpoint, self.loggers)
        self.progress.add_seconds("setup_seconds", time.perf_counter() - started)

    def _validate_or_continue(self) -> None:
        """Measure the untrained model, or go on after the task at whose end the run stood."""
        if self._checkpoint is None:
            self._validate()
        elif self.progress.task_is_done:
            resume.restore_callbacks(self._checkpoint, self)

    def _tasks_left(self) -> list[int]:
        done = self.progress.task - (not self.progress.task_is_done)
        return [task for task in self.algorithm.trained_tasks() if task > done]

    @property
    def _continues_within(self) -> Checkpoint | None:
        """The checkpoint, if the run is to continue within the task that is beginning."""
        checkpoint = self._checkpoint
        return None if checkpoint is None or checkpoint.task_is_done else checkpoint

    def _fit_task(self, task: int) -> None:
        progress = self.progress
        progress.task, progress.task_is_done = task, False
        with self._events.around("task"):
            self._load_task()
            training, checkpoint = self.algorithm.training, self._continues_within
            epochs, self.stop_task = training.epochs(task), False
            for epoch in range(1, epochs + 1):
                if checkpoint is not None and epoch < checkpoint.epoch:
                    # Later epochs rest on what planning this one leaves.
                    self.algorithm.plan_epoch(task, epoch, self.algorithm.num_current)
                    continue
                progress.epoch = epoch
                if training.reinit_optimizer == "epoch":
                    self._engine.reset_optimizer()
                with self._events.around("epoch"):
                    self._fit_epoch()
                if self.stop_task:
                    break
                if training.evaluate_every == "epoch" and epoch < epochs:
                    self._validate()
            self._refuse_infinite_weights()
            progress.task_losses.append(progress.epoch_loss_sum / progress.epoch_samples)
        self._refuse_infinite_weights()  # an algorithm may have moved them after the task
        progress.task_is_done = True
        self._validate()

    def _load_task(self) -> None:
        """Put the task's data on the device, and make the optimizer's state fresh if asked to."""
        started = time.perf_counter()
        algorithm = self.algorithm
        data = algorithm.training_data(self.task)
        algorithm.num_current = len(data.y)
        algorithm.replay_dataset = algorithm.make_replay_dataset(data)
        self._engine.load_dataset(algorithm.replay_dataset, algorithm.training_mask())
        self.progress.add_seconds("setup_seconds", time.perf_counter() - started)
        if algorithm.training.reinit_optimizer == "task":
            self._engine.reset_optimizer()

    def _fit_epoch(self) -> None:
        algorithm, progress = self.algorithm, self.progress
        parts = algorithm.plan_epoch(progress.task, progress.epoch, algorithm.num_current)
        crop, flip = algorithm.benchmark.crop_padding, algorithm.benchmark.horizontal_flip
        if crop or flip:
            names, rng = algorithm.batch_names, algorithm.random
            parts = augmentation(rng, self.task, self.epoch, parts, names, crop, flip)
        self.epoch_steps = sum(len(part["index"]) for part in parts)
        if (checkpoint := self._continues_within) is not None:
            # Hooks before the task and the epoch have run again: whatever they did is undone.
            resume.restore_arrays(checkpoint, algorithm)
            resume.restore_callbacks(checkpoint, self)
        else:
            progress.epoch_first_step = progress.global_step
            progress.epoch_loss_sum = progress.epoch_samples = 0.0
        self._checkpoint = None
        position = progress.task, progress.epoch, progress.epoch_first_step
        for chunk in chunks(*position, parts, self._engine.chunk_steps):
            if chunk.first_step >= progress.global_step:
                with self._events.around("chunk", chunk):
                    self._fit_chunk(chunk)

    def _fit_chunk(self, chunk: Chunk) -> None:
        progress, timing = self.progress, self.progress.timing
        started = time.perf_counter()
        elsewhere = timing["compile_seconds"] + timing["eval_seconds"]
        self._engine.run_chunk(chunk)
        elsewhere -= timing["compile_seconds"] + timing["eval_seconds"]
        progress.add_seconds("train_seconds", time.perf_counter() - started + elsewhere)
        assert chunk.losses is not None
        self._refuse_divergence(chunk, chunk.losses)
        progress.global_step += chunk.steps
        progress.gradient_steps += chunk.steps
        progress.samples_seen += chunk.steps * chunk.batch_size
        progress.epoch_loss_sum += float(chunk.losses.sum(dtype=np.float64)) * chunk.batch_size
        progress.epoch_samples += chunk.steps * chunk.batch_size
        progress.final_loss = float(chunk.losses[-1])

    # ---- evaluation

    def _validate(self) -> None:
        with self._events.around("validation"):
            self._measure_row()

    def _measure_row(self) -> None:
        """Measure a row of the accuracy matrix."""
        algorithm, progress = self.algorithm, self.progress
        benchmark, aware = algorithm.benchmark, progress.accuracy_matrix_task_aware
        started, compiled = time.perf_counter(), progress.timing["compile_seconds"]
        for task in algorithm.evaluated_tasks():
            masks = [algorithm.evaluation_mask(task)]
            if aware is not None:
                assert benchmark.class_mask is not None
                masks.append(benchmark.class_mask[task - 1])
            counts = self._engine.count_correct(task, masks)
            size = len(benchmark.task_data(task, benchmark.evaluation_split).y)
            progress.accuracy_matrix[self.task, task - 1] = counts[0] / size
            if aware is not None:
                aware[self.task, task - 1] = counts[1] / size
        compiled = progress.timing["compile_seconds"] - compiled
        progress.add_seconds("eval_seconds", time.perf_counter() - started - compiled)

    # ---- details

    def _refuse_divergence(self, chunk: Chunk, losses: np.ndarray) -> None:
        finite = np.isfinite(losses)
        if not finite.all():
            first = int(np.argmin(finite))
            raise TrainingDiverged(
                f"the loss is {losses[first]} at task {chunk.task}, epoch {chunk.epoch}, "
                f"step {chunk.first_step + first}; a smaller optimizer.lr or training.grad_clip "
                "may help"
            )

    def _refuse_infinite_weights(self) -> None:
        """Raise TrainingDiverged if the task's last update, which no loss tells of, went wrong."""
        if not self._engine.weights_are_finite():
            raise TrainingDiverged(
                f"the parameters are not finite after task {self.task}, epoch {self.epoch}, "
                f"step {self.step - 1}; a smaller optimizer.lr or training.grad_clip may help"
            )

    def run_info(self) -> RunInfo:
        """Return what loggers are told when the run starts."""
        algorithm, resumed = self.algorithm, self._checkpoint is not None
        matrices = {n: m.copy() for n, m in self.progress.matrices.items()} if resumed else {}
        return RunInfo(
            name=algorithm.names,
            seed=algorithm.seed,
            num_tasks=algorithm.num_tasks,
            config=algorithm.config,
            directory=algorithm.run_dir,
            measured_on=algorithm.benchmark.evaluation_split,
            resumed_at=self.step if resumed else None,
            matrices=matrices,
        )

    def _teardown(self, status: str) -> None:
        self._engine.stop()
        for logger in self.loggers:
            logger.close(status)

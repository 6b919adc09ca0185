"""Trainer: the loop over tasks, epochs and chunks, the same for both frameworks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from seqrun.training.schedules import with_factors


class Trainer:
    """Train an algorithm over its stream of tasks. Callbacks get the Trainer as `run`.

    The constructor connects the algorithm's engine with the hooks of algorithm and callbacks.

    Attributes:
        algorithm: the algorithm to train.
        total_steps: training steps planned for the run, known after its setup.
        epoch_steps: training steps of the current epoch.
        stop_task: set by a callback to end the task after the current epoch.
    """

    def __init__(self, algorithm: BaseAlgorithm) -> None:
        self.algorithm = algorithm
        self.epoch_steps = 0
        self.stop_task = False
        self._engine = algorithm.engine
        self._events = algorithm.engine.events = Events(self, algorithm)
        self._checkpoint: Checkpoint | None = None

    # ---- the interface for callbacks; see Run

    @property
    def progress(self) -> Progress:
        return self.algorithm.progress

    @property
    def task(self) -> int:
        return self.progress.task

    @property
    def epoch(self) -> int:
        return self.progress.epoch

    @property
    def step(self) -> int:
        return self.progress.global_step

    @property
    def total_steps(self) -> int:
        return self._engine.total_steps

    @property
    def matrix(self) -> np.ndarray:
        return self.progress.accuracy_matrix

    @property
    def directory(self) -> Path | None:
        return self.algorithm.run_dir

    @property
    def config_hash(self) -> str:
        return self.algorithm.config_hash

    @property
    def callbacks(self) -> Sequence[BaseCallback]:
        return self.algorithm.callbacks

    @property
    def loggers(self) -> Sequence[BaseLogger]:
        return self.algorithm.loggers

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        step = self.step if step is None else step
        for logger in self.loggers:
            logger.log(values, step=step, epoch=self.epoch, task=self.task)

    def evaluate(self, task: int, split: str | None = None) -> float:
        return self.accuracies([task], split)[0]

    def accuracies(self, tasks: Iterable[int], split: str | None = None) -> list[float]:
        return [accuracy for accuracy, *_ in self._measure(tasks, split)]

    def return_to_epoch(self, epoch: int, arrays: Mapping[str, np.ndarray]) -> None:
        algorithm = self.algorithm
        algorithm.import_arrays({**algorithm.export_arrays(), **arrays})
        current = algorithm.replay_dataset.rows(slice(algorithm.num_current))
        algorithm.replay_dataset = algorithm.make_replay_dataset(current)
        plans = self._plan_again(epoch)  # a memory's plan rests on the epochs that were planned
        for callback in self.callbacks:
            callback.on_return_to_epoch(self, plans)

    def record(self) -> RunRecord:
        return RunRecord.of(
            self.progress,
            seed=self.algorithm.seed,
            test_sizes=evaluation_sizes(self.algorithm.benchmark, self.algorithm.measured_on),
            execution=self._engine.execution,
            device=self._engine.device_kind,
        )

    def checkpoint(self) -> Checkpoint:
        return resume.checkpoint_of(self, self.algorithm)

    def __getattr__(self, name: str) -> Any:
        """Tell a callback what it gets; it was the algorithm in earlier versions."""
        raise AttributeError(
            f"run.{name}: a callback gets the run, which has no {name}; "
            f"if the algorithm has it, it is run.algorithm.{name}"
        )

    def start_trace(self, folder: Path) -> None:
        self._engine.start_trace(folder)

    def stop_trace(self) -> None:
        self._engine.stop_trace()

    # ---- the loop

    def fit(self, resume_from: Checkpoint | None = None) -> RunRecord:
        """Train over the whole stream and return the record.

        Args:
            resume_from: a checkpoint of the same experiment; None = start from the beginning.

        Raises:
            TrainingDiverged: the loss, or a parameter at a task's end, became NaN or infinite.
        """
        status = "failed"
        self.algorithm.reset()
        try:
            with self._events.around("setup"):
                self.setup(resume_from)
            with self._events.around("fit"):
                self._validate_or_continue()
                for task in self._remaining_tasks():
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
        """Prepare data, device and weights, restore the checkpoint if any, and open the loggers."""
        started = time.perf_counter()
        algorithm, checkpoint = self.algorithm, resume_from
        self._checkpoint = checkpoint
        algorithm.benchmark.prepare(algorithm.random)
        began_with = None if checkpoint is None else checkpoint.state.get("num_threads")
        self._engine.start(began_with)
        limits.check_lengths(algorithm)
        limits.plan_lengths(algorithm)
        limits.refuse_what_cannot_fit(limits.needs_of(algorithm))
        self._engine.set_weights(algorithm.initial_weights())
        algorithm.persistent = algorithm.initial_persistent_state()
        limits.refuse_what_cannot_fit(limits.needs_of(algorithm))  # now the states are included
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
        """Evaluate the untrained model, or continue from a checkpoint at the end of a task."""
        if self._checkpoint is None:
            self._validate()
        elif self.progress.task_is_done:
            resume.restore_callbacks(self._checkpoint, self)

    def _remaining_tasks(self) -> list[int]:
        done = self.progress.task - (not self.progress.task_is_done)
        return [task for task in self.algorithm.trained_tasks() if task > done]

    @property
    def _mid_task_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to continue from, if it lies within a task; else None."""
        checkpoint = self._checkpoint
        return None if checkpoint is None or checkpoint.task_is_done else checkpoint

    def _fit_task(self, task: int) -> None:
        progress = self.progress
        progress.task, progress.task_is_done = task, False
        with self._events.around("task"):
            self._load_task()
            training, checkpoint = self.algorithm.training, self._mid_task_checkpoint
            epochs, self.stop_task = self.algorithm.epochs(task), False
            first = 1 if checkpoint is None else checkpoint.epoch
            self._plan_again(first - 1)
            for epoch in range(first, epochs + 1):
                progress.epoch = epoch
                if training.reinit_optimizer == "epoch":
                    self._engine.reset_optimizer()
                with self._events.around("epoch"):
                    self._fit_epoch()
                if self.stop_task:
                    break
                if training.evaluate_every == "epoch" and epoch < epochs:
                    self._validate()
            self._check_weights()
            progress.task_losses.append(progress.epoch_loss_sum / progress.epoch_samples)
        self._check_weights()  # an algorithm may change them after the task
        progress.task_is_done = True
        self._validate()

    def _plan_again(self, epochs: int) -> list[list[dict[str, np.ndarray]]]:
        """Plan the first epochs of the task without training: the plans of later ones follow."""
        algorithm = self.algorithm
        return [
            algorithm.plan_epoch(self.task, epoch, algorithm.num_current)
            for epoch in range(1, epochs + 1)
        ]

    def _load_task(self) -> None:
        """Move the task's data to the device; reset the optimizer if it is reset per task."""
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
        segments = algorithm.plan_epoch(progress.task, progress.epoch, algorithm.num_current)
        crop, flip = algorithm.benchmark.crop_padding, algorithm.benchmark.horizontal_flip
        if crop or flip:
            names, rng = algorithm.batch_names, algorithm.random
            segments = augmentation(rng, self.task, self.epoch, segments, names, crop, flip)
        self.epoch_steps = sum(len(segment["index"]) for segment in segments)
        if algorithm.training.has_schedule:
            segments = self._scheduled(segments)
        if (checkpoint := self._mid_task_checkpoint) is not None:
            # The hooks before the task and the epoch have run again: undo their effects.
            resume.restore_arrays(checkpoint, algorithm)
            resume.restore_callbacks(checkpoint, self)
        else:
            progress.epoch_first_step = progress.global_step
            progress.epoch_loss_sum = progress.epoch_samples = 0.0
        self._checkpoint = None
        position = progress.task, progress.epoch, progress.epoch_first_step
        for chunk in chunks(*position, segments, self._engine.chunk_steps):
            if chunk.first_step >= progress.global_step:
                with self._events.around("chunk", chunk):
                    self._fit_chunk(chunk)

    def _scheduled(self, segments: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Add the learning-rate factors of an epoch, whose place follows from the plan."""
        algorithm, glances = self.algorithm, self.algorithm.steps_per_batch
        steps = {t: algorithm.batches(t) * glances for t in algorithm.trained_tasks()}
        in_epoch = algorithm.batches_in_epoch(self.task) * glances
        first, total = (self.epoch - 1) * in_epoch, steps[self.task]
        if algorithm.training.lr_schedule_scope == "run":
            first += sum(count for t, count in steps.items() if t < self.task)
            total = sum(steps.values())
        return with_factors(
            segments, algorithm.training, first=first, total=total, epoch_steps=in_epoch
        )

    def _fit_chunk(self, chunk: Chunk) -> None:
        progress, timing = self.progress, self.progress.timing
        started = time.perf_counter()
        other = timing["compile_seconds"] + timing["eval_seconds"]
        self._engine.run_chunk(chunk)
        other = timing["compile_seconds"] + timing["eval_seconds"] - other
        progress.add_seconds("train_seconds", time.perf_counter() - started - other)
        assert chunk.losses is not None
        self._check_losses(chunk, chunk.losses)
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
        progress, tasks = self.progress, self.algorithm.evaluated_tasks()
        started, compile_seconds = time.perf_counter(), progress.timing["compile_seconds"]
        for task, accuracies in zip(tasks, self._measure(tasks), strict=True):
            for matrix, accuracy in zip(progress.matrices.values(), accuracies, strict=True):
                matrix[self.task, task - 1] = accuracy
        compile_seconds = progress.timing["compile_seconds"] - compile_seconds
        progress.add_seconds("eval_seconds", time.perf_counter() - started - compile_seconds)

    def _measure(self, tasks: Iterable[int], split: str | None = None) -> list[list[float]]:
        """Measure the model as it is at this moment; no accuracy is measured anywhere else.

        Args:
            tasks: 1-based.
            split: "test" or "validation"; None = the data of the accuracy matrix.

        Returns:
            For each task, its accuracy for every matrix of the run.
        """
        algorithm, benchmark = self.algorithm, self.algorithm.benchmark
        split = split or algorithm.measured_on
        task_aware = self.progress.accuracy_matrix_task_aware is not None
        algorithm.prepare_evaluation()
        measured = []
        for task in tasks:
            masks = [algorithm.evaluation_mask(task)]
            if task_aware:
                assert benchmark.class_mask is not None
                masks.append(benchmark.class_mask[task - 1])
            counts = self._engine.count_correct(task, masks, split)
            measured.append([count / benchmark.task_size(task, split) for count in counts])
        return measured

    # ---- details

    def _check_losses(self, chunk: Chunk, losses: np.ndarray) -> None:
        """Raise TrainingDiverged if a loss of the chunk is not finite."""
        finite = np.isfinite(losses)
        if not finite.all():
            first = int(np.argmin(finite))
            raise TrainingDiverged(
                f"the loss is {losses[first]} at task {chunk.task}, epoch {chunk.epoch}, "
                f"step {chunk.first_step + first}; a smaller optimizer.lr or training.grad_clip "
                "may help"
            )

    def _check_weights(self) -> None:
        """Raise TrainingDiverged if a weight is not finite; no loss would show the last update."""
        if not self._engine.weights_are_finite():
            raise TrainingDiverged(
                f"the parameters are not finite after task {self.task}, epoch {self.epoch}, "
                f"step {self.step - 1}; a smaller optimizer.lr or training.grad_clip may help"
            )

    def run_info(self) -> RunInfo:
        """Return the description of the run with which loggers are opened."""
        algorithm, resumed = self.algorithm, self._checkpoint is not None
        matrices = {n: m.copy() for n, m in self.progress.matrices.items()} if resumed else {}
        return RunInfo(
            name=algorithm.names,
            seed=algorithm.seed,
            num_tasks=algorithm.num_tasks,
            config=algorithm.config,
            directory=algorithm.run_dir,
            measured_on=algorithm.measured_on,
            selected_on=algorithm.selected_on,
            resumed_at=self.step if resumed else None,
            matrices=matrices,
        )

    def _teardown(self, status: str) -> None:
        self._engine.stop()
        for logger in self.loggers:
            logger.close(status)

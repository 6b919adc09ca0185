"""CheckpointCallback: saves checkpoints of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from seqrun.checks import at_least, boolean, whole
from seqrun.plan import Chunk
from seqrun.records.checkpoint import save, set_aside_after
from seqrun.training.callback import BaseCallback, Run


@dataclass(kw_only=True, eq=False)
class CheckpointCallback(BaseCallback):
    """Save the complete state of a run in its directory, so that it can continue from there.

    A checkpoint is saved at the end of a chunk of steps, or at the end of a task after its
    evaluation. Saving checkpoints does not change the run's numbers.

    Args:
        every_task: save at the end of each task.
        every_epoch: save at the end of each epoch.
        every_steps: save after this number of steps, >= 1; None = steps do not matter.
        every_minutes: save after this time, > 0; None = time does not matter.
        keep: number of checkpoints to keep, >= 1. With 1 there is none to fall back to if the last
            one is damaged.

    Raises:
        ConfigError: a value out of range.
    """

    every_task: bool = True
    every_epoch: bool = False
    every_steps: int | None = None
    every_minutes: float | None = 5.0
    keep: int = 2

    _saved_at: float = field(default=0.0, init=False, repr=False)
    _saved_step: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        boolean("every_task", self.every_task)
        boolean("every_epoch", self.every_epoch)
        if self.every_steps is not None:
            whole("every_steps", self.every_steps, 1)
        if self.every_minutes is not None:
            at_least("every_minutes", self.every_minutes, 0.0, strictly=True)
        whole("keep", self.keep, 1)

    def on_before_fit(self, run: Run) -> None:
        """Set the checkpoints of an earlier run aside if this one starts from the beginning."""
        if run.step == 0 and run.directory is not None:
            set_aside_after(run.directory, None)
        self._saved_at, self._saved_step = time.monotonic(), run.step

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        done, every = run.step, self.every_steps
        ends_epoch = done == run.progress.epoch_first_step + run.epoch_steps
        minutes = (time.monotonic() - self._saved_at) / 60
        if (
            (self.every_epoch and ends_epoch)
            or (every and done // every > self._saved_step // every)
            or (self.every_minutes and minutes >= self.every_minutes)
        ):
            self.save(run)

    def on_after_validation(self, run: Run) -> None:
        if self.every_task and run.progress.task_is_done:
            self.save(run)

    def save(self, run: Run) -> None:
        """Save a checkpoint of the run now, if it has a directory."""
        if run.directory is None:
            return
        save(run.checkpoint(), run.directory, config_hash=run.config_hash, keep=self.keep)
        self._saved_at, self._saved_step = time.monotonic(), run.step

"""CheckpointCallback: keeps a run's checkpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from seqrun.checks import at_least, boolean, whole
from seqrun.plan import Chunk
from seqrun.records.checkpoint import save
from seqrun.training.callback import BaseCallback, Run


@dataclass(kw_only=True, eq=False)
class CheckpointCallback(BaseCallback):
    """Write what a run carries into its directory, so that it can continue from there.

    A checkpoint lies at the end of a chunk of steps, or of a task after its evaluation. Where
    checkpoints lie changes no number of the run.

    Args:
        every_task: at each task's end.
        every_epoch: at each epoch's end.
        every_steps: whenever so many steps more are done, >= 1; None = never for that reason.
        every_minutes: whenever so much time has passed, > 0; None = never for that reason.
        keep: last checkpoints to keep, >= 1; with one alone there is none to fall back to.

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
        """Start counting."""
        self._saved_at, self._saved_step = time.monotonic(), run.step

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Save if it is time."""
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
        """Save at the end of a task."""
        if self.every_task and run.progress.task_is_done:
            self.save(run)

    def save(self, run: Run) -> None:
        """Write a checkpoint of the run as it stands, if it has a directory."""
        if run.directory is None:
            return
        save(
            run.checkpoint(),
            run.directory,
            config_hash=run.config_hash,
            keep=self.keep,
        )
        self._saved_at, self._saved_step = time.monotonic(), run.step

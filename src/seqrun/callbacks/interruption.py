"""InterruptionCallback: ends a run at the end of a chunk when the process gets a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from seqrun.callbacks.checkpoint import CheckpointCallback
from seqrun.plan import Chunk
from seqrun.training.callback import BaseCallback, Run

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Ctrl-C, and signals that schedulers send before they kill a job.

A signal for which another handler is installed keeps it.
"""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@dataclass(kw_only=True, eq=False)
class InterruptionCallback(BaseCallback):
    """Save a checkpoint and raise Interrupted after the chunk in which a signal arrives.

    Before training, and at a second Ctrl-C, Interrupted is raised immediately and nothing is saved.
    Runs that are trained in lockstep share one callback: each ends after its own chunk.
    """

    _requested: int | None = field(default=None, init=False, repr=False)
    _training: set[int] = field(default_factory=set, init=False, repr=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals in this block, if it runs in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        replaced = {}
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                replaced[number] = handler
                signal.signal(number, self._request)
        try:
            yield
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        again = self._requested is not None and number == signal.SIGINT
        self._requested = number
        if again or not self._training:
            raise Interrupted(number)

    def on_before_fit(self, run: Run) -> None:
        """From now on a signal takes effect at the end of a chunk."""
        self._training.add(id(run))

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        self._end(run)

    def on_after_validation(self, run: Run) -> None:
        """End the run between two tasks if a signal arrived; after the last task it completes."""
        last = run.algorithm.trained_tasks()[-1]
        if run.progress.task_is_done and run.task != last:
            self._end(run)

    def on_after_fit(self, run: Run) -> None:
        """From now on a signal takes effect immediately."""
        self._training.discard(id(run))

    def on_before_teardown(self, run: Run) -> None:
        """From now on a signal takes effect immediately, also after a failure."""
        self._training.discard(id(run))

    def _end(self, run: Run) -> None:
        if self._requested is None:
            return
        self._training.discard(id(run))
        for callback in run.callbacks:
            if isinstance(callback, CheckpointCallback):
                callback.save(run)
        raise Interrupted(self._requested)

"""InterruptionCallback: ends a run at the next chunk boundary when a signal asks for it."""

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
"""Ctrl-C, and what schedulers send before they kill; one that is handled by others is let be."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@dataclass(kw_only=True, eq=False)
class InterruptionCallback(BaseCallback):
    """Save a checkpoint and raise Interrupted after the chunk in which a signal came.

    Before the first step, and at a second Ctrl-C, it is raised at once and nothing is saved. Runs
    that are trained in step share one: each ends after its own chunk.
    """

    _requested: int | None = field(default=None, init=False, repr=False)
    _training: set[int] = field(default_factory=set, init=False, repr=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals in this block, in a main thread; afterwards all is as before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = handler
                signal.signal(number, self._request)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        again = self._requested is not None and number == signal.SIGINT
        self._requested = number
        if again or not self._training:
            raise Interrupted(number)

    def on_before_fit(self, run: Run) -> None:
        """From here on a signal waits for the chunk's end."""
        self._training.add(id(run))

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """End the run if asked to."""
        self._end(run)

    def on_after_validation(self, run: Run) -> None:
        """End the run between tasks if asked to; a run that is done anyway completes."""
        last = run.algorithm.trained_tasks()[-1]
        if run.progress.task_is_done and run.task != last:
            self._end(run)

    def on_after_fit(self, run: Run) -> None:
        """From here on a signal waits for nothing."""
        self._training.discard(id(run))

    def on_before_teardown(self, run: Run) -> None:
        """Nor after a failure."""
        self._training.discard(id(run))

    def _end(self, run: Run) -> None:
        if self._requested is None:
            return
        self._training.discard(id(run))
        for callback in run.callbacks:
            if isinstance(callback, CheckpointCallback):
                callback.save(run)
        raise Interrupted(self._requested)

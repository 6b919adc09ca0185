"""TrackerLogger: runs a tracker's client on its own thread, so that it cannot slow down a run."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from seqrun.checks import ConfigError, at_least, whole
from seqrun.files import flatten
from seqrun.loggers.base import BaseLogger, RunInfo, opened
from seqrun.records.checkpoint_checks import CheckpointError, check_whole

MAX_QUEUED = 10_000
"""Maximum number of queued calls; a chunk of steps is one call."""


@dataclass(kw_only=True, eq=False)
class TrackerLogger(BaseLogger):
    """Pass all logged values, in order, to a client that runs on a daemon thread.

    The run never waits for the client, except for up to `close_seconds` at its end. A client is
    dropped if it raises, takes more than `call_seconds` for one call, or falls too far behind: the
    logger prints one warning to standard error, and the run continues without the client, with the
    same numbers. Subclasses implement `start`, `write`, `write_summary`, `write_figure` and
    `finish`, which are called on the client's thread. The figures of the accuracy matrices are
    drawn when a run completes.

    Args:
        every_steps: values of training steps, such as the loss, are logged at multiples of this
            number of steps, >= 1.
        call_seconds: maximum duration of one call, > 0.
        close_seconds: maximum time that the end of the run waits for the client, > 0.

    Raises:
        ConfigError: a value out of range, or a run without a directory.
    """

    every_steps: int = 1
    call_seconds: float = 30.0
    close_seconds: float = 10.0

    name: ClassVar[str] = "tracker"
    """Name of the logger in messages, and of its folder in the run directory."""
    package: ClassVar[str] = ""
    """Package that must be installed; "" = none."""

    _run: RunInfo | None = field(default=None, init=False, repr=False)
    _earlier: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _rows: int = field(default=0, init=False, repr=False)
    _matrices: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)
    _calls: Any = field(default=None, init=False, repr=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)
    _busy_since: float | None = field(default=None, init=False, repr=False)
    _dropped: bool = field(default=False, init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        whole("every_steps", self.every_steps, 1)
        at_least("call_seconds", self.call_seconds, 0.0, strictly=True)
        at_least("close_seconds", self.close_seconds, 0.0, strictly=True)

    @property
    def enabled(self) -> bool:
        """Whether the logger does anything."""
        return True

    # ---- implemented by subclasses, called on the client's thread

    def start(self, run: RunInfo, directory: Path, earlier: Mapping[str, Any]) -> None:
        """Start the client, before the first value.

        Args:
            run: description of the run.
            directory: directory for the logger's files, <run directory>/<name>; not created yet.
            earlier: state at the checkpoint to continue from: what `own_state` returned, and
                "rows", the number of `write` calls; {} = a new run.
        """
        raise NotImplementedError

    def write(self, values: Mapping[str, float], step: int, epoch: int, task: int) -> None:
        """Record a row of scalars measured after `step` steps."""
        raise NotImplementedError

    def write_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Record the final metrics; None = undefined."""
        raise NotImplementedError

    def write_figure(self, name: str, png: bytes) -> None:
        """Record a figure."""
        raise NotImplementedError

    def finish(self, status: str) -> None:
        """End the run in the client."""
        raise NotImplementedError

    def flush(self) -> None:
        """Flush to disk what was written, unless the client does this itself."""

    def own_state(self) -> dict[str, Any]:
        """Return additional state that `start` needs to continue; called on the run's thread."""
        return {}

    # ---- called by a run

    def check(self) -> None:
        """Raise ConfigError unless the client is installed."""
        if self.enabled and self.package and find_spec(self.package) is None:
            raise ConfigError(
                f"logger.{self.name}: needs the package {self.package}, which is not installed: "
                f"pip install {self.package.replace('_', '-')}"
            )

    def open(self, run: RunInfo) -> None:
        """Store the run; the client starts with the first value."""
        if self.enabled and run.directory is None:
            raise ConfigError(f"logger.{self.name}: must be used in a run that has a directory")
        self._run, self._earlier, self._thread = run, {}, None
        self._dropped, self._busy_since, self._rows = False, None, 0
        self._matrices = {name: matrix.copy() for name, matrix in run.matrices.items()}

    def export_state(self) -> dict[str, Any]:
        """Return what a resumed run needs; the client flushes later, on its own thread."""
        self._enqueue(self.flush)
        return {**self.own_state(), "rows": self._rows}

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Continue after what an earlier part of the run logged, or begin anew if that fails."""
        try:
            self.take_state(state)
        except CheckpointError as error:
            self._warn(f"begins anew, because its state in the checkpoint is damaged: {error}")

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state` (untrusted data): what `own_state` returned, and "rows".

        Raises:
            CheckpointError: the state is not valid; the logger is unchanged.
        """
        check_whole("rows", state.get("rows"))
        self._earlier, self._rows = dict(state), state["rows"]

    def log(self, values: Mapping[str, float], *, step: int, epoch: int, task: int) -> None:
        self._rows += 1
        self._enqueue(partial(self.write, dict(values), step, epoch, task))

    def log_steps(
        self, name: str, values: np.ndarray, *, first_step: int, epoch: int, task: int
    ) -> None:
        """Record the values of a chunk's steps in one call."""
        first = -first_step % self.every_steps
        kept = values[first :: self.every_steps].copy()
        if len(kept):
            self._rows += len(kept)
            self._enqueue(partial(self._write_steps, name, kept, first_step + first, epoch, task))

    def log_matrix(self, name: str, matrix: np.ndarray, *, step: int, task: int) -> None:
        """Store the accuracy matrix for its figure."""
        self._matrices[name] = matrix.copy()

    def log_summary(self, metrics: Mapping[str, float | None]) -> None:
        self._enqueue(partial(self.write_summary, dict(metrics)))

    def close(self, status: str) -> None:
        """End the run; wait up to `close_seconds` for the client."""
        if self._run is None:
            return
        if status == "completed":
            for name, matrix in self._matrices.items():
                self._enqueue(partial(self._draw, self._run, name, matrix))
        self._enqueue(partial(self.finish, status))
        if not self._dropped and self._thread is not None:
            self._enqueue(None)
            self._thread.join(self.close_seconds)
            if self._thread.is_alive():
                self._drop(f"it did not finish within {self.close_seconds:g} s of the run's end")
        self._run = None

    # ---- communication between the two threads

    def _enqueue(self, call: Callable[[], None] | None) -> None:
        """Queue a call for the client's thread; None ends the thread."""
        if self._dropped or not self.enabled:
            return
        run = opened(self._run)
        if self._thread is None:
            self._calls = queue.Queue(MAX_QUEUED)
            assert run.directory is not None  # checked in `open`
            directory = Path(run.directory, self.name)
            self._calls.put(partial(self.start, run, directory, self._earlier))
            self._thread = threading.Thread(
                target=self._work, args=(self._calls,), name=f"seqrun-{self.name}", daemon=True
            )
            self._thread.start()
        since = self._busy_since
        if since is not None and time.monotonic() - since > self.call_seconds:
            self._drop(f"a call has taken more than {self.call_seconds:g} s")
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._drop(f"it is {MAX_QUEUED} calls behind")

    def _work(self, calls: Any) -> None:
        """Make the queued calls one after the other, until the end or until one fails."""
        try:
            while (call := calls.get()) is not None and not self._dropped:
                self._busy_since = time.monotonic()
                call()
                self._busy_since = None
        except BaseException as error:  # clients may raise anything, even SystemExit
            self._drop(f"{type(error).__name__}: {error}")

    def _write_steps(
        self, name: str, values: np.ndarray, first_step: int, epoch: int, task: int
    ) -> None:
        for offset, value in enumerate(values.tolist()):
            self.write({name: value}, first_step + offset * self.every_steps, epoch, task)
            if self._dropped:
                return

    def _draw(self, run: RunInfo, name: str, matrix: np.ndarray) -> None:
        from seqrun.evaluation.figures import matrix_figure, png

        names = run.name
        title = f"{names['algo']} on {names['benchmark']}, {names['backbone']} ({names['backend']})"
        suffix = ", task given at test" if name.endswith("_task_aware") else ""
        self.write_figure(name, png(matrix_figure(matrix, title + suffix)))

    def _drop(self, reason: str) -> None:
        with self._lock:
            if self._dropped:
                return
            self._dropped = True
        self._warn(f"is dropped, the run continues: {reason}")

    def _warn(self, message: str) -> None:
        line = " ".join(message.split())  # a warning is a single line
        sys.stderr.write(f"warning: logger {self.name} {line}\n")


def as_text(metrics: Mapping[str, float | None]) -> str:
    """Return the final metrics as a Markdown table."""
    rows = [f"| {k} | {'undefined' if v is None else f'{v:.6g}'} |" for k, v in metrics.items()]
    return "\n".join(["| metric | value |", "| --- | --- |", *rows])


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value of a configuration, without empty nodes."""
    return {key: value for key, value in flatten(config).items() if value != {}}

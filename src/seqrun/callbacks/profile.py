"""ProfileCallback: writes a profiler trace of some chunks."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import ClassVar

from seqrun.checks import whole
from seqrun.plan import Chunk
from seqrun.training.callback import BaseCallback, Run

FOLDER = "profile"

_tracing = threading.Lock()
"""Held while a run is traced, since the frameworks' profilers record the whole process."""


@dataclass(kw_only=True, eq=False)
class ProfileCallback(BaseCallback):
    """Write a trace into profile/ of the run directory, for Perfetto or TensorBoard to open.

    PyTorch writes profile/trace.json. JAX writes the folder profile/plugins/profile/<time>/, which
    has a perfetto_trace.json.gz. A chunk is the steps that an engine runs in one call; the first
    chunks include compilation. Tracing slows down the traced chunks and changes no numbers. A
    process writes one trace at a time: if several runs are trained in lockstep, only the first is
    traced, and its trace also shows the work of the others.

    Args:
        first_chunk: number of the first chunk to trace; the run's chunks are counted from 1.
        num_chunks: number of chunks to trace, >= 1; work between these chunks is traced too.

    Raises:
        ConfigError: a value out of range.
    """

    first_chunk: int = 2
    num_chunks: int = 1

    products: ClassVar[tuple[str, ...]] = (FOLDER,)

    _chunks: int = field(default=0, init=False, repr=False)
    _is_tracing: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        whole("first_chunk", self.first_chunk, 1)
        whole("num_chunks", self.num_chunks, 1)

    def on_before_fit(self, run: Run) -> None:
        self._chunks = 0

    def on_before_chunk(self, run: Run, chunk: Chunk) -> None:
        """Start tracing at the first chunk to trace."""
        self._chunks += 1
        if self._chunks == self.first_chunk and run.directory is not None:
            if not _tracing.acquire(blocking=False):
                sys.stderr.write(
                    "warning: callbacks.profile: another run of this process is being traced\n"
                )
                return
            folder = run.directory / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            self._is_tracing = True
            run.start_trace(folder)

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Stop tracing after the last chunk to trace."""
        if self._chunks == self.first_chunk + self.num_chunks - 1:
            self._stop(run)

    def on_after_fit(self, run: Run) -> None:
        """Warn if nothing was traced."""
        if self._chunks < self.first_chunk:
            sys.stderr.write(
                f"warning: callbacks.profile.first_chunk={self.first_chunk}: nothing was traced, "
                f"the run had {self._chunks} chunks\n"
            )

    def on_before_teardown(self, run: Run) -> None:
        """Write the trace if the run ended early."""
        self._stop(run)

    def _stop(self, run: Run) -> None:
        if self._is_tracing:
            self._is_tracing = False
            try:
                run.stop_trace()
            finally:
                _tracing.release()

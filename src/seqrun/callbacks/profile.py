"""ProfileCallback: a trace of what the framework does during some chunks."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import ClassVar

from seqrun.checks import whole
from seqrun.plan import Chunk
from seqrun.training.callback import BaseCallback, Run

FOLDER = "profile"

_of_the_process = threading.Lock()
"""Held while a run is traced: the frameworks' profilers see all that a process does."""


@dataclass(kw_only=True, eq=False)
class ProfileCallback(BaseCallback):
    """Write a trace into profile/ of the run directory, for Perfetto or TensorBoard to open.

    On PyTorch it is profile/trace.json; on JAX profile/plugins/profile/<time>/, with a
    perfetto_trace.json.gz among the files. A chunk is the steps that an engine runs in
    one call; the first ones hold compilation. Tracing slows the traced chunks down and changes
    no number. A process writes one trace at a time: of runs that are trained in step the first is
    traced, in which the others' work is seen too.

    Args:
        first_chunk: of the run's chunks, from 1, the first to trace.
        num_chunks: chunks to trace, >= 1; what the algorithm does between them is traced too.

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
        """Count anew."""
        self._chunks = 0

    def on_before_chunk(self, run: Run, chunk: Chunk) -> None:
        """Begin with the first chunk to trace."""
        self._chunks += 1
        if self._chunks == self.first_chunk and run.directory is not None:
            if not _of_the_process.acquire(blocking=False):
                sys.stderr.write("warning: callbacks.profile: traces another run of this process\n")
                return
            folder = run.directory / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            self._is_tracing = True
            run.start_trace(folder)

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """End with the last one."""
        if self._chunks == self.first_chunk + self.num_chunks - 1:
            self._stop(run)

    def on_after_fit(self, run: Run) -> None:
        """Say if there was nothing to trace."""
        if self._chunks < self.first_chunk:
            sys.stderr.write(
                f"warning: callbacks.profile.first_chunk={self.first_chunk}: nothing was traced, "
                f"the run had {self._chunks} chunks\n"
            )

    def on_before_teardown(self, run: Run) -> None:
        """Write what a run that ended early left."""
        self._stop(run)

    def _stop(self, run: Run) -> None:
        if self._is_tracing:
            self._is_tracing = False
            try:
                run.stop_trace()
            finally:
                _of_the_process.release()

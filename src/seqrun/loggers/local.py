"""LocalLogger: writes values, accuracy matrix and figures into the run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from seqrun.checks import ConfigError, boolean, writable
from seqrun.files import json_value, matrix_to_csv, write_atomically
from seqrun.loggers.base import BaseLogger, RunInfo, opened
from seqrun.records.checkpoint_checks import CheckpointError, check_keys, check_whole
from seqrun.records.results import FILE

METRICS_FILE = "metrics.jsonl"
FIGURES = "figures"
BUFFER_BYTES = 1 << 20


@dataclass(kw_only=True, eq=False)
class LocalLogger(BaseLogger):
    """Write metrics.jsonl, accuracy_matrix.csv and figures/ into a directory.

    metrics.jsonl has one JSON object per line, `{"step", "epoch", "task", <name>: value, ...}`. It
    has no times, so the same run writes the same bytes. Values that are not finite are null. Lines
    are flushed at each validation and at the end.

    A new run overwrites metrics.jsonl; a resumed run truncates it to its checkpoint.

    Args:
        directory: directory of the files; None = the run directory.
        figures: draw figures/ when a run completes.

    Raises:
        ConfigError: `figures` is not a boolean, or neither the logger nor the run has a directory.
    """

    directory: str | Path | None = None
    figures: bool = True

    products: ClassVar[tuple[str, ...]] = (METRICS_FILE, "accuracy_matrix.csv", FIGURES)

    _run: RunInfo | None = field(default=None, init=False, repr=False)
    _file: IO[str] | None = field(default=None, init=False, repr=False)
    _keep: int = field(default=0, init=False, repr=False)
    _matrices: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        boolean("logger.local.figures", self.figures)

    def check(self) -> None:
        """Raise ConfigError unless the directory can be written to."""
        if self.directory is not None:
            writable("logger.local.directory", self.directory)
            if (Path(self.directory) / FILE).exists():
                raise ConfigError(
                    f"logger.local.directory={self.directory}: holds another run, whose files "
                    "would be overwritten; must be another directory, or null for the run directory"
                )

    def open(self, run: RunInfo) -> None:
        """Store the run; files are opened when the first value is logged."""
        if self.directory is None and run.directory is None:
            raise ConfigError(
                "logger.local.directory=None: must be a directory, as the run itself has none"
            )
        self._run, self._file, self._matrices = run, None, dict(run.matrices)

    def log(self, values: Mapping[str, float], *, step: int, epoch: int, task: int) -> None:
        """Write all values as one line."""
        line = {"step": step, "epoch": epoch, "task": task, **json_value(values)}
        self._lines().write(json.dumps(line, ensure_ascii=False) + "\n")

    def log_steps(
        self, name: str, values: np.ndarray, *, first_step: int, epoch: int, task: int
    ) -> None:
        """Write one line per step, all in one write."""
        if not np.isfinite(values).all():
            super().log_steps(name, values, first_step=first_step, epoch=epoch, task=task)
            return
        rest = f', "epoch": {epoch}, "task": {task}, {json.dumps(name, ensure_ascii=False)}: '
        numbered = enumerate(values.tolist(), first_step)
        if values.dtype == np.float32:  # nine digits are exact for float32 and faster to format
            lines = [f'{{"step": {step}{rest}{value:.9g}}}\n' for step, value in numbered]
        else:
            lines = [f'{{"step": {step}{rest}{value!r}}}\n' for step, value in numbered]
        self._lines().write("".join(lines))

    def log_matrix(self, name: str, matrix: np.ndarray, *, step: int, task: int) -> None:
        """Rewrite <name>.csv and flush metrics.jsonl."""
        self._matrices[name] = matrix.copy()
        write_atomically(self.path / f"{name}.csv", matrix_to_csv(matrix))
        self._lines().flush()

    def close(self, status: str) -> None:
        """Close metrics.jsonl; draw the figures if the run is completed."""
        if self._run is None:  # the run ended before `open`
            return
        if self._file is not None or status == "completed":
            self._lines().close()
        if status == "completed" and self.figures and self._matrices:
            self._draw()
        self._run, self._file, self._keep = None, None, 0

    @property
    def path(self) -> Path:
        """The directory of the open run's files."""
        return self._directory_of(opened(self._run))

    def _directory_of(self, run: RunInfo) -> Path:
        if self.directory is None:
            assert run.directory is not None  # checked in `open`
            return Path(run.directory)
        several_seeds = run.directory is not None and Path(run.directory).parent.name == "seeds"
        own = ("seeds", str(run.seed)) if several_seeds else ()  # otherwise seeds would share files
        return Path(self.directory, *own)

    def export_state(self) -> dict[str, Any]:
        """Return the length of metrics.jsonl in bytes, after flushing it to disk."""
        file = self._lines()
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size}

    def check_state(self, run: RunInfo, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless a line of metrics.jsonl ends at the checkpoint's length.

        Raises:
            ConfigError: metrics.jsonl is missing or empty, so that no checkpoint fits.
        """
        check_keys(state, ("bytes",))
        check_whole("bytes", state["bytes"])
        if not state["bytes"]:
            return
        path, ends_line = self._directory_of(run) / METRICS_FILE, False
        size = path.stat().st_size if path.exists() else 0
        if size == 0:
            raise ConfigError(
                f"{path}: must be as it was at the checkpoint, but is missing or empty; "
                "resume=never starts from the beginning"
            )
        if state["bytes"] <= size:
            with open(path, "rb") as file:
                file.seek(state["bytes"] - 1)
                ends_line = file.read(1) == b"\n"
        if not ends_line:
            raise CheckpointError(
                f"bytes={state['bytes']}: must be the end of a line of {path}, which has {size} "
                "bytes"
            )

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Truncate metrics.jsonl to its length at the checkpoint, and append to it.

        The position is in bytes, not in steps, because values of one step may be logged before and
        after a checkpoint. Those before it must stay; those after it are logged again.
        """
        self._keep = state["bytes"]

    def _lines(self) -> IO[str]:
        """Return the open file metrics.jsonl; open it at the first call."""
        if self._file is None:
            path = self.path / METRICS_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._keep:
                size = path.stat().st_size if path.exists() else 0
                if size < self._keep:  # truncate would pad the file with zeros
                    raise ConfigError(
                        f"{path}: must have at least the {self._keep} bytes that it had at the "
                        f"checkpoint, not {size}; resume=never starts from the beginning"
                    )
                os.truncate(path, self._keep)
            mode = "a" if self._keep else "w"
            self._file = open(path, mode, BUFFER_BYTES, encoding="utf-8", newline="\n")
        return self._file

    def _draw(self) -> None:
        from seqrun.evaluation.figures import save_figures

        name = opened(self._run).name
        title = f"{name['algo']} on {name['benchmark']}, {name['backbone']} ({name['backend']})"
        for kind, matrix in self._matrices.items():
            task_aware = kind != "accuracy_matrix"  # the task-aware matrix has its own folder
            folder = self.path / FIGURES / kind if task_aware else self.path / FIGURES
            save_figures(folder, matrix, f"{title}, task given at test" if task_aware else title)

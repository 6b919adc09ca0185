"""BaseLogger: the interface of all loggers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class RunInfo:
    """Information that a logger gets when a run starts.

    Attributes:
        name: {"algo", "benchmark", "backbone", "backend"} -> name.
        seed: the run's seed.
        num_tasks: length of the stream.
        config: the resolved configuration as plain data, without secrets.
        directory: the run's directory; None = nothing is written to disk.
        measured_on: "test" or "validation".
        selected_on: what a callback chooses the ends of tasks by; None = no callback does.
        resumed_at: steps done at the checkpoint from which the run continues; None = a new run.
        matrices: of a resumed run: name -> matrix so far, as passed to `log_matrix`.
    """

    name: Mapping[str, str]
    seed: int
    num_tasks: int
    config: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    measured_on: str = "test"
    selected_on: str | None = None
    resumed_at: int | None = None
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)


def opened(run: RunInfo | None) -> RunInfo:
    """Return the open run; raise RuntimeError if there is none."""
    if run is None:
        raise RuntimeError("no run is open: call open(RunInfo) first")
    return run


class BaseLogger:
    """Receive scalars, the accuracy matrix and the final metrics of one run.

    By default all methods do nothing, except that `log_steps` calls `log`. A logger only implements
    what its destination supports. Steps are 0-based and global; tasks and epochs are 1-based; task
    0 is the untrained model.
    """

    products: ClassVar[tuple[str, ...]] = ()
    """Files and folders that the logger writes into the run's directory."""

    def check(self) -> None:
        """Raise ConfigError if the destination cannot be used; create nothing."""

    def open(self, run: RunInfo) -> None:
        """Start a run; called once, before anything is logged."""

    def export_state(self) -> dict[str, Any]:
        """Flush everything that was logged; return what a resumed run needs, as plain data."""
        return {}

    def check_state(self, run: RunInfo, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `import_state` can continue from `state` (untrusted data).

        Called before `open`; on an error the previous checkpoint is tried.
        """

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, which `export_state` returned; drop what was logged after it.

        Called after `open`.
        """

    def log(self, values: Mapping[str, float], *, step: int, epoch: int, task: int) -> None:
        """Record scalars measured after `step` steps."""

    def log_steps(
        self, name: str, values: np.ndarray, *, first_step: int, epoch: int, task: int
    ) -> None:
        """Record one scalar per training step; `values` is (steps,) float."""
        for offset, value in enumerate(values):
            self.log({name: float(value)}, step=first_step + offset, epoch=epoch, task=task)

    def log_matrix(self, name: str, matrix: np.ndarray, *, step: int, task: int) -> None:
        """Record the accuracy matrix so far, (T+1, T) float, NaN = not measured."""

    def log_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Record the final metrics; None = undefined for this stream."""

    def close(self, status: str) -> None:
        """End the run with status "completed", "failed" or "interrupted"; flush pending values."""

"""BaseLogger: what a destination of logged values implements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told when a run starts.

    Attributes:
        name: {"algo", "benchmark", "backbone", "backend"} -> name.
        seed: the run's seed.
        num_tasks: length of the stream.
        config: the resolved configuration as plain data, without secrets.
        directory: the run's directory; None when nothing is to be kept on disk.
        measured_on: "test" or "validation".
        resumed_at: steps already done when the run continues from a checkpoint; None = it begins.
        matrices: name -> what a resumed run has measured already, as `log_matrix` gets it.
    """

    name: Mapping[str, str]
    seed: int
    num_tasks: int
    config: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    measured_on: str = "test"
    resumed_at: int | None = None
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)


class BaseLogger:
    """Receive scalars, the accuracy matrix and the final metrics of one run.

    Every method has a default that does nothing (`log_steps` falls back to `log`), so that a
    logger implements what its destination can hold. Steps are 0-based and global; tasks and
    epochs are 1-based; task 0 stands for the untrained model.
    """

    products: ClassVar[tuple[str, ...]] = ()
    """Files and folders that it leaves in a run's directory."""

    def check(self) -> None:
        """Raise ConfigError if the destination cannot be reached; nothing is made there."""

    def open(self, run: RunInfo) -> None:
        """Start a run; called once before anything is logged."""

    def export_state(self) -> dict[str, Any]:
        """Return what a resumed run must know, plain data; all that was logged is safe by then."""
        return {}

    def check_state(self, run: RunInfo, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `import_state` can go on from `state`, which anyone wrote.

        Called before `open`; the checkpoint before is tried then.
        """

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Go on, after `open`, from where `export_state` was called: drop what came later."""

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
        """End the run with status "completed", "failed" or "interrupted"; write what is pending."""

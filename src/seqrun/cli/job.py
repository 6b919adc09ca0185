"""Job: an experiment of a command, before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrun.config.experiment import Experiment


@dataclass(frozen=True)
class Job:
    """One experiment of a command.

    Attributes:
        experiment: the experiment.
        directory: the run directory; None if only the launcher will know it.
        overrides: the overrides that distinguish it from the other jobs of a multirun.
        trials: number of trials of the search of which it is an example; None = not of a search.
        is_alone: whether it is the only run of a command without -m.
    """

    experiment: Experiment
    directory: Path | None
    overrides: tuple[str, ...] = ()
    trials: int | None = None
    is_alone: bool = False

    @property
    def config(self) -> Mapping[str, Any]:
        """The experiment as plain data."""
        return self.experiment.config

    @property
    def hash(self) -> str:
        """The experiment's config hash."""
        return self.experiment.hash

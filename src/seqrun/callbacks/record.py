"""RecordCallback: keeps results.json true while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqrun.training.callback import BaseCallback
from seqrun.records.results import Results, RunRecord

if TYPE_CHECKING:
    from seqrun.algorithms.base import BaseAlgorithm


@dataclass(kw_only=True, eq=False)
class RecordCallback(BaseCallback):
    """Rewrite the run directory's record whenever a row of the accuracy matrix was measured.

    Args:
        results: the record that the runner started.
    """

    results: Results

    def on_after_validation(self, algorithm: BaseAlgorithm) -> None:
        """Put the run as it stands into results.json."""
        self.results.update(RunRecord.of(algorithm))

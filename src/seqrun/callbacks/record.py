"""RecordCallback: keeps results.json true while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass

from seqrun.records.results import Results
from seqrun.training.callback import BaseCallback, Run


@dataclass(kw_only=True, eq=False)
class RecordCallback(BaseCallback):
    """Rewrite the run directory's record whenever a row of the accuracy matrix was measured.

    Args:
        results: the record that the runner started.
    """

    results: Results

    def on_after_validation(self, run: Run) -> None:
        """Put the run as it stands into results.json."""
        self.results.update(run.record())

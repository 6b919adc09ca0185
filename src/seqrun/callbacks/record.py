"""RecordCallback: keeps results.json up to date during a run."""

from __future__ import annotations

from dataclasses import dataclass

from seqrun.records.results import Results
from seqrun.training.callback import BaseCallback, Run


@dataclass(kw_only=True, eq=False)
class RecordCallback(BaseCallback):
    """Rewrite results.json after each row of the accuracy matrix.

    Args:
        results: the record that the runner started.
    """

    results: Results

    def on_after_validation(self, run: Run) -> None:
        self.results.update(run.record())

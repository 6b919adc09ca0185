"""What seqrun has for hydra/launcher=basic: a launcher that handles signals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from hydra_plugins.seqrun._jobs import BaseLauncher
from seqrun.sweeps.summary import Outcome, SweepJob, progress, stopped


class InProcessLauncher(BaseLauncher):
    """Run the jobs one after the other in this process, which imports everything only once."""

    runs_here: ClassVar[bool] = True

    def run(self, jobs: Sequence[SweepJob]) -> Sequence[Outcome]:
        """Run every job; a signal ends the current one, after a checkpoint, and the multirun."""
        from seqrun.callbacks import InterruptionCallback
        from seqrun.sweeps.jobs import run_job

        outcomes: list[Outcome] = []
        interruption = InterruptionCallback()
        with interruption.listening():
            try:
                for job in jobs:
                    outcomes.append(self.run_here(job, partial(run_job, job, interruption)))
                    progress(job, outcomes[-1], len(outcomes), len(jobs))
            except KeyboardInterrupt:
                stopped(jobs, len(outcomes))
                raise
        return outcomes

"""hydra/launcher=vectorized: jobs that differ in numbers alone, in one program (JAX)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.utils import env_override

from hydra_plugins.seqrun._jobs import BaseLauncher
from seqrun.sweeps.summary import Outcome, SweepJob, progress, stopped


class VectorizedLauncher(BaseLauncher):
    """Train jobs that share their structure in step, as one program; the others one by one.

    Each job leaves the run directory that it would have left alone. What cannot be grouped runs
    after the groups, and stderr says why.
    """

    _is_told = False

    def run(self, jobs: Sequence[SweepJob]) -> Sequence[Outcome]:
        """Run every job; a signal makes those that run save a checkpoint, and ends the multirun."""
        from seqrun.callbacks import InterruptionCallback
        from seqrun.sweeps.grouping import group
        from seqrun.sweeps.jobs import has_ended, run_job, run_jobs_together

        outcomes: dict[int, Outcome] = {}

        def ended(job: SweepJob, outcome: Outcome) -> None:
            outcomes[job.number] = outcome
            progress(job, outcome, len(outcomes), len(jobs))

        interruption = InterruptionCallback()
        with interruption.listening():
            try:
                for job in jobs:
                    if has_ended(job):
                        ended(job, run_job(job, interruption))
                groups, alone = group([job for job in jobs if job.number not in outcomes])
                for members in groups:
                    self._advise(members[0])
                    sys.stderr.write(f"{len(members)} jobs in one program\n")
                    with env_override(members[0].environment):
                        run_jobs_together(members, interruption, ended)
                for job, reason in alone:
                    sys.stderr.write(f"{job.name}: runs alone: {reason}\n")
                    with env_override(job.environment):
                        ended(job, run_job(job, interruption))
            except KeyboardInterrupt:
                stopped(len(outcomes), len(jobs))
                raise
        return [outcomes[job.number] for job in jobs]

    def _advise(self, job: SweepJob) -> None:
        """Say once where this launcher is of no use."""
        if not self._is_told and job.experiment.device == "cpu":
            sys.stderr.write("on a CPU hydra/launcher=local_processes is faster\n")
            self._is_told = True

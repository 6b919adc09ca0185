"""hydra/launcher=vectorized: train jobs that differ only in numbers in one program (JAX)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.utils import env_override

from hydra_plugins.seqrun._jobs import BaseLauncher
from seqrun.sweeps.summary import Outcome, SweepJob, progress, stopped


class VectorizedLauncher(BaseLauncher):
    """Train jobs of the same structure in one program, and the others one by one.

    Each job leaves the same run directory as if it had run alone. Jobs that cannot be grouped run
    after the groups, and stderr says why.
    """

    _has_advised = False

    def run(self, jobs: Sequence[SweepJob]) -> Sequence[Outcome]:
        """Run every job; after a signal, running jobs save a checkpoint and the multirun ends."""
        from seqrun.callbacks import InterruptionCallback
        from seqrun.sweeps.grouping import group
        from seqrun.sweeps.jobs import has_ended, run_job, run_jobs_vmapped

        outcomes: dict[int, Outcome] = {}

        def on_end(job: SweepJob, outcome: Outcome) -> None:
            outcomes[job.number] = outcome
            progress(job, outcome, len(outcomes), len(jobs))

        interruption = InterruptionCallback()
        with interruption.listening():
            try:
                for job in jobs:
                    if has_ended(job):
                        on_end(job, run_job(job, interruption))
                groups, alone = group([job for job in jobs if job.number not in outcomes])
                for members in groups:
                    self._advise(members[0])
                    sys.stderr.write(f"{len(members)} jobs in one program\n")
                    with env_override(members[0].environment):
                        run_jobs_vmapped(members, interruption, on_end)
                for job, reason in alone:
                    sys.stderr.write(f"{job.name}: runs alone: {reason}\n")
                    with env_override(job.environment):
                        on_end(job, run_job(job, interruption))
            except KeyboardInterrupt:
                stopped(jobs, len(outcomes))
                raise
        return [outcomes[job.number] for job in jobs]

    def _advise(self, job: SweepJob) -> None:
        """Say once that another launcher is faster on this device."""
        if not self._has_advised and job.experiment.device == "cpu":
            sys.stderr.write("on a CPU hydra/launcher=local_processes is faster\n")
            self._has_advised = True

"""hydra/launcher=basic, Hydra's default, in seqrun's way: one process for all jobs."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import env_override

from hydra_plugins.seqrun._jobs import BaseLauncher
from seqrun.sweeps.summary import Outcome, SweepJob, progress, stopped

NODE = {"_target_": "hydra_plugins.seqrun.in_process.InProcessLauncher"}
"""Takes the place of Hydra's own, which composes a job when it starts and knows no interruption."""
ConfigStore.instance().store(group="hydra/launcher", name="basic", node=NODE, provider="seqrun")


class InProcessLauncher(BaseLauncher):
    """Run the jobs one after the other in this process, which pays its imports once."""

    def run(self, jobs: Sequence[SweepJob]) -> Sequence[Outcome]:
        """Run every job; a signal ends the one that runs, after a checkpoint, and the multirun."""
        from seqrun.callbacks import InterruptionCallback
        from seqrun.sweeps.jobs import run_job

        outcomes: list[Outcome] = []
        interruption = InterruptionCallback()
        with interruption.listening():
            try:
                for job in jobs:
                    with env_override(job.environment):
                        outcomes.append(run_job(job, interruption))
                    progress(job, outcomes[-1], len(outcomes), len(jobs))
            except KeyboardInterrupt:
                stopped(len(outcomes), len(jobs))
                raise
        return outcomes

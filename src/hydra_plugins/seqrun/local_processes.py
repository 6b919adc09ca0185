"""hydra/launcher=local_processes: several processes of one machine."""

from __future__ import annotations

from collections.abc import Sequence

from hydra_plugins.seqrun._jobs import BaseLauncher
from seqrun.checks import whole
from seqrun.sweeps.summary import Outcome, SweepJob
from seqrun.system import num_cores


class LocalProcessesLauncher(BaseLauncher):
    """Run the jobs in several processes, each of which runs one after the other.

    A process that is killed costs its job one of its tries, and no other job anything.

    Args:
        n_jobs: processes at a time; None = one per core.
        retries: times that a job is tried again when its process was killed.

    Raises:
        ConfigError: an argument that is not allowed.
    """

    def __init__(self, n_jobs: int | None, retries: int) -> None:
        if n_jobs is not None:
            whole("hydra.launcher.n_jobs", n_jobs, 1)
        whole("hydra.launcher.retries", retries, 0)
        self.n_jobs = n_jobs or num_cores()
        self.retries = retries

    def run(self, jobs: Sequence[SweepJob]) -> Sequence[Outcome]:
        """Run every job; a signal makes those that run save a checkpoint, and ends the multirun."""
        from hydra_plugins.seqrun._processes import run_jobs

        return run_jobs(jobs, processes=min(self.n_jobs, len(jobs)), retries=self.retries)

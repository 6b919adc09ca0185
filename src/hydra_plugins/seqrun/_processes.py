"""Jobs of a multirun in several processes of one machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.utils import env_override

from hydra_plugins.seqrun._jobs import log_of
from seqrun.callbacks import Interrupted, InterruptionCallback
from seqrun.runs.processes import Killed, output_in, run_in_processes
from seqrun.sweeps.summary import Outcome, SweepJob, progress, stopped


def run_jobs(jobs: Sequence[SweepJob], *, processes: int, retries: int) -> Sequence[Outcome]:
    """Run the jobs in several processes and return how each ended, in their order.

    Args:
        jobs: at least one.
        processes: how many run at a time.
        retries: how often a job is tried again after its process was killed.

    Raises:
        Interrupted: a signal came; the jobs that ran have saved a checkpoint.
    """
    outcomes: dict[int, Outcome] = {}

    def on_end(job: SweepJob, outcome: Outcome | Killed) -> None:
        if isinstance(outcome, Killed):
            outcome = _killed(job)
        outcomes[job.number] = outcome
        progress(job, outcome, len(outcomes), len(jobs))

    def on_retry(job: SweepJob) -> None:
        sys.stderr.write(f"{job.name}: its process was killed; it runs again\n")

    try:
        run_in_processes(
            jobs, _run, on_end, processes=processes, retries=retries, on_retry=on_retry
        )
    except Interrupted:
        stopped(jobs, len(outcomes))
        raise
    return [outcomes[job.number] for job in jobs]


def _run(job: SweepJob) -> Outcome | None:
    """Run a job in this worker process; return None if a signal ended it."""
    from seqrun.sweeps.jobs import run_job

    with env_override(job.environment), output_in(log_of(job)):
        interruption = InterruptionCallback()
        try:
            with interruption.listening():
                return run_job(job, interruption)
        except KeyboardInterrupt:
            return None


def _killed(job: SweepJob) -> Outcome:
    error = f"its process was killed, perhaps out of memory; see {log_of(job)}"
    return Outcome(overrides=job.overrides, directory=job.directory, status="failed", error=error)

"""hydra/launcher=slurm: submit the jobs as a job array, with submitit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from hydra_plugins.seqrun._jobs import BaseLauncher
from seqrun.checks import ConfigError, boolean, one_of, whole
from seqrun.files import write_json
from seqrun.sweeps.summary import Outcome, SweepJob, progress

ALIVE = (
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD",
    "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
)  # fmt: skip
AS_GIVEN = (
    "comment", "exclude", "gres", "gpus_per_task", "cpus_per_gpu", "mem_per_cpu", "mem_per_gpu",
)  # fmt: skip
"""Keys whose values go to sbatch as they are."""
LATE = 60.0
"""Seconds within which squeue must show a job that was submitted."""
USUAL_ARRAY_SIZE = 1001
"""SLURM's default of MaxArraySize."""
SUBMITTED = "submitted.json"
"""File with run directory -> id of the SLURM job that was last submitted for it."""


class SlurmLauncher(BaseLauncher):
    """Submit the jobs as an array and wait for them.

    The queue is read with squeue, so no accounting is needed. A job that was submitted earlier and
    is still queued or running is waited for, not submitted again.

    Args:
        folder: folder for scripts, job logs and results; every node must see it.
        partition, account, qos, constraint, comment, exclude, gres: as for sbatch; None = the
            cluster's default.
        nodes, tasks_per_node: a run is one process: what more are given waits for it.
        gpus_per_node, gpus_per_task, cpus_per_task, cpus_per_gpu, mem_gb, mem_per_cpu, mem_per_gpu:
            per job; None = the cluster's default.
        name: of the jobs; None = seqrun-<sweep>.
        submitit_folder: folder for what submitit writes, in place of `folder`; may have %j.
        stderr_to_stdout: whether a job has one log instead of two.
        timeout_min: time limit of a job in minutes.
        signal_delay_s: seconds before the time limit at which a job saves and is requeued.
        requeue: whether preempted and timed-out jobs are requeued.
        max_num_timeout: how often a job may run into its time limit.
        array_parallelism: jobs at a time.
        setup: shell lines to run before a job.
        additional_parameters: other options of sbatch.
        poll_seconds: seconds between two reads of the queue.

    Raises:
        ConfigError: an argument that is not allowed, or sbatch is not installed.
    """

    def __init__(
        self,
        folder: str,
        partition: str | None,
        account: str | None,
        qos: str | None,
        constraint: str | None,
        gpus_per_node: int | None,
        cpus_per_task: int | None,
        mem_gb: float | None,
        timeout_min: int,
        signal_delay_s: int,
        requeue: bool,
        max_num_timeout: int,
        array_parallelism: int,
        setup: ListConfig | None,
        additional_parameters: DictConfig,
        poll_seconds: int,
        nodes: int = 1,
        tasks_per_node: int = 1,
        name: str | None = None,
        submitit_folder: str | None = None,
        stderr_to_stdout: bool = False,
        **as_given: Any,
    ) -> None:
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "hydra/launcher=slurm: needs SLURM, which runs on Linux; there is no sbatch here"
            )
        self.folder = Path(folder).absolute()
        for key, value, low in (
            ("nodes", nodes, 1),
            ("tasks_per_node", tasks_per_node, 1),
            ("timeout_min", timeout_min, 1),
            ("signal_delay_s", signal_delay_s, 0),
            ("max_num_timeout", max_num_timeout, 0),
            ("array_parallelism", array_parallelism, 1),
            ("poll_seconds", poll_seconds, 1),
        ):
            whole(f"hydra.launcher.{key}", value, low)
        boolean("hydra.launcher.requeue", requeue)
        boolean("hydra.launcher.stderr_to_stdout", stderr_to_stdout)
        for key in as_given:
            one_of("hydra.launcher", key, AS_GIVEN)
        self.name, self.submitit_folder = name, submitit_folder or self.folder
        self.ending = "out" if stderr_to_stdout else "err"
        self.requeue, self.max_num_timeout = requeue, max_num_timeout if requeue else 0
        self.poll_seconds = poll_seconds
        others: Any = OmegaConf.to_container(additional_parameters, resolve=True)
        lines: Any = None if setup is None else OmegaConf.to_container(setup, resolve=True)
        options = {
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "gpus_per_node": gpus_per_node,
            "cpus_per_task": cpus_per_task,
            "mem": None if mem_gb is None else f"{round(1024 * mem_gb)}M",
            "time": timeout_min,
            "signal_delay_s": signal_delay_s,
            "array_parallelism": array_parallelism,
            "setup": lines,
            "nodes": nodes,
            "ntasks_per_node": tasks_per_node,
            "stderr_to_stdout": stderr_to_stdout,
            **as_given,
        }
        self.options: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        flag = "requeue" if requeue else "no-requeue"
        self.options["additional_parameters"] = {flag: True, **others}

    def run(self, jobs: Sequence[SweepJob]) -> Sequence[Outcome]:
        """Submit the jobs that are neither done nor queued; wait for all, return their outcomes."""
        from seqrun.runs.directory import is_done

        queued = self._queued(jobs)
        open_jobs = [job for job in jobs if not is_done(job.directory, job.experiment)]
        new = [job for job in open_jobs if job.directory not in queued]
        try:
            queued |= self._submit(new)
            return self._wait(jobs, queued)
        except KeyboardInterrupt:
            sys.stderr.write(
                "interrupted: submitted jobs go on; the same command waits for them, "
                f"scancel --name={self._name()} ends them\n"
            )
            raise

    def _name(self) -> str:
        return self.name or f"seqrun-{self.folder.parent.name}"

    def _submit(self, jobs: Sequence[SweepJob]) -> dict[Path, str]:
        """Submit jobs as arrays, as few as the cluster allows; return directory -> job id."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.slurm.slurm import SlurmExecutor

        if not jobs:
            return {}
        from hydra_plugins.seqrun._serialized import SerializedJob, serialize
        from seqrun.config.secrets import SECRETS

        for job in jobs:
            serialize(job, SECRETS)
        size = _max_array_size()
        arrays = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        at_a_time = max(1, self.options["array_parallelism"] // len(arrays))
        options = self.options | {"array_parallelism": at_a_time}
        ids: dict[Path, str] = {}
        for array in arrays:
            try:
                executor = SlurmExecutor(self.submitit_folder, max_num_timeout=self.max_num_timeout)
                executor.update_parameters(job_name=self._name(), **options)
                submitted = executor.map_array(
                    SerializedJob(requeue=self.requeue), [str(job.directory) for job in array]
                )
            except (FailedJobError, FailedSubmissionError, OSError, ValueError) as error:
                raise ConfigError(f"hydra/launcher=slurm: {error}") from error
            new = {job.directory: made.job_id for job, made in zip(array, submitted, strict=True)}
            known = {**self._submitted(), **{str(path): number for path, number in new.items()}}
            write_json(self.folder / SUBMITTED, known)
            ids |= new
        sys.stderr.write(f"submitted {len(jobs)} jobs as {self._name()}\n")
        return ids

    def _submitted(self) -> dict[str, str]:
        path = self.folder / SUBMITTED
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _queued(self, jobs: Sequence[SweepJob]) -> dict[Path, str]:
        """Return directory -> SLURM's job id of the jobs that are already in the queue."""
        known, states = self._submitted(), _queue() or {}
        ids = {job.directory: known.get(str(job.directory), "") for job in jobs}
        return {path: number for path, number in ids.items() if states.get(number) in ALIVE}

    def _wait(self, jobs: Sequence[SweepJob], ids: Mapping[Path, str]) -> list[Outcome]:
        """Wait until every job has ended; return their outcomes in order."""
        from seqrun.sweeps.jobs import recorded_outcome

        outcomes: dict[int, Outcome] = {}
        seen_ended: set[int] = set()
        listed: set[str] = set()  # job ids that squeue has shown
        late = time.monotonic() + LATE
        while len(outcomes) < len(jobs):
            states = _queue()
            for job in jobs:
                number = ids.get(job.directory)
                if job.number in outcomes or (number and states is None):
                    continue
                listed |= {number} & (states or {}).keys() if number else set()
                state = (states or {}).get(number or "", "GONE")
                if number and state in ALIVE:
                    seen_ended.discard(job.number)
                    continue
                # Trust the run's record: SLURM calls a run that failed COMPLETED, too.
                log = f"{self.submitit_folder}/{number}_0_log.{self.ending}"
                error = f"SLURM's job {number} is {state}; see {log}"
                outcome = recorded_outcome(job, was_done=not number, otherwise=error)
                is_late = number and number not in listed and time.monotonic() < late
                if outcome.status == "failed" and is_late:
                    continue  # a busy controller shows a job some seconds after it was submitted
                if outcome.status == "failed" and job.number not in seen_ended:
                    seen_ended.add(job.number)  # perhaps requeued, or a slow file system: wait once
                    continue
                outcomes[job.number] = outcome
                progress(job, outcome, len(outcomes), len(jobs))
            if len(outcomes) < len(jobs):
                time.sleep(self.poll_seconds)
        return [outcomes[job.number] for job in jobs]


def _max_array_size() -> int:
    """Return how many jobs an array may have on this cluster."""
    command = ["scontrol", "show", "config"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return USUAL_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return max(1, int(found[1])) if found else USUAL_ARRAY_SIZE


def _queue() -> dict[str, str] | None:
    """Return SLURM's job id -> state of this user's jobs; None if squeue fails."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T"]
    command += [f"--user={os.getuid()}"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=60, check=True
        )
    except subprocess.SubprocessError:
        return None
    return dict(line.split("|", 1) for line in done.stdout.split())

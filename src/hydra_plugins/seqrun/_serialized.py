"""Write a job of a multirun to its directory, to run it later and elsewhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.utils import env_override

from seqrun.callbacks import Interrupted, InterruptionCallback
from seqrun.checks import ConfigError
from seqrun.config.experiment import Experiment
from seqrun.config.secrets import without_secrets
from seqrun.files import write_atomically
from seqrun.sweeps.summary import SweepJob

FILE = Path(".hydra", "job.yaml")
MASK = "from the environment variable "


def serialize(job: SweepJob, secrets: tuple[str, ...]) -> None:
    """Write a job to its directory; secrets are replaced by the variables that hold them.

    Args:
        job: the job.
        secrets: the endings of keys that hold a secret.

    Raises:
        ConfigError: no environment variable holds a secret of the job.
    """
    content = {
        "number": job.number,
        "name": job.name,
        "overrides": list(job.overrides),
        "environment": dict(job.environment),
        "config": _masked(job.config, secrets, ""),
    }
    (job.directory / FILE).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.directory / FILE, yaml.safe_dump(content, sort_keys=False))


def load_job(directory: Path) -> SweepJob:
    """Read a job back from its directory.

    Raises:
        ConfigError: a variable with a secret is not set here.
    """
    content = yaml.safe_load((directory / FILE).read_text(encoding="utf-8"))
    return SweepJob(
        number=content["number"],
        name=content["name"],
        overrides=tuple(content["overrides"]),
        environment=content["environment"],
        experiment=Experiment.of(_unmasked(content["config"])),
        directory=directory,
    )


def _masked(value: Any, secrets: tuple[str, ...], key: str) -> Any:
    if isinstance(value, Mapping):
        return {k: _masked(v, secrets, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if not value or not isinstance(value, str):
        return value
    if not key.lower().endswith(secrets) and without_secrets(value) == value:
        return value
    for name, held in os.environ.items():
        if held == value:
            return f"{MASK}{name}"
    raise ConfigError(f"{key}: must come from a variable, ${{oc.env:NAME}}, to be submitted")


def _unmasked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmasked(item) for key, item in value.items()}
    if not isinstance(value, str) or not value.startswith(MASK):
        return value
    name = value.removeprefix(MASK)
    if name not in os.environ:
        raise ConfigError(f"{name}: this environment variable must be set where the job runs")
    return os.environ[name]


@dataclass(kw_only=True, eq=False)
class SerializedJob:
    """The function that submitit runs on a node of the cluster.

    Args:
        requeue: whether to queue a job again that SLURM is about to stop.
    """

    requeue: bool

    def __call__(self, directory: str) -> None:
        """Run the job in `directory`; when SLURM takes the node back, save a checkpoint first.

        Raises:
            SystemExit: a signal ended the job.
        """
        from seqrun.sweeps.jobs import run_job

        if int(os.environ.get("SLURM_PROCID", "0")):
            return  # of several tasks, the first runs the job
        job = load_job(Path(directory))
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, which would not wait for a save
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        interruption = InterruptionCallback()
        try:
            with env_override(job.environment), interruption.listening():
                run_job(job, interruption)
        except Interrupted as error:
            # After SIGTERM, SLURM itself requeues the job unless a user cancelled it.
            if error.number == signal.SIGUSR2 and self.requeue and callable(requeue):
                requeue(error.number, None)
            raise SystemExit(128 + error.number) from None

    def checkpoint(self, directory: str) -> Any:
        """Return what submitit runs when the job is requeued: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, directory)

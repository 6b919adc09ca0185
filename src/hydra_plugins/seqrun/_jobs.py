"""Shared by launchers and sweepers: jobs composed in advance, and results as Hydra has them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from seqrun.checks import ConfigError
from seqrun.config.experiment import Experiment
from seqrun.records.results import RecordError, Results
from seqrun.sweeps.summary import Outcome, SweepJob, differing

LOGS = "logs"
"""Folder beside the jobs' directories with the output of each job."""


class BaseLauncher(Launcher):
    """Compose all jobs before the first starts, so that conf/ may be edited while jobs wait.

    Hydra's callbacks hear of a job's start and end in this process: where jobs run elsewhere, when
    they are handed over and when all have ended.
    """

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    composed: dict[int, DictConfig]
    """Job number -> its configuration with Hydra's node."""
    before: int = 0
    total: int | None = None
    """As `SweepJob` has them."""
    shared: Collection[str] = ()
    """Overrides that no name of a job shows; none = those that all launched jobs have."""
    runs_here: ClassVar[bool] = False
    """Whether the jobs run in this process, one after the other, by `run_here`."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        setup_globals()
        self.composed = {}
        names = differing(job_overrides, self.shared)
        jobs = [
            self._job(tuple(overrides), name, number)
            for number, (overrides, name) in enumerate(
                zip(job_overrides, names, strict=True), initial_job_idx
            )
        ]
        # A search may propose a point twice, which is one experiment in one directory.
        first = [next(j for j in jobs if _is_same(j, job)) for job in jobs]
        different = [job for job, earliest in zip(jobs, first, strict=True) if job is earliest]
        if not self.runs_here:
            for job in different:
                self._starts(job)
        outcomes = dict(zip((job.number for job in different), self.run(different), strict=True))
        if not self.runs_here:
            for job in different:
                self._ended(job, outcomes[job.number])
        return [
            self._return(job, replace(outcomes[earliest.number], overrides=job.overrides))
            for job, earliest in zip(jobs, first, strict=True)
        ]

    def _starts(self, job: SweepJob) -> None:
        cfg = self.composed[job.number]
        self.hydra_context.callbacks.on_job_start(config=cfg, task_function=self.task_function)

    def _ended(self, job: SweepJob, outcome: Outcome) -> None:
        self.hydra_context.callbacks.on_job_end(
            config=self.composed[job.number], job_return=self._return(job, outcome)
        )

    def _return(self, job: SweepJob, outcome: Outcome) -> OutcomeReturn:
        return OutcomeReturn(outcome, self.composed[job.number])

    def run_here(self, job: SweepJob, run: Callable[[], Outcome]) -> Outcome:
        """Run a job in this process, with what Hydra gives a job.

        Its HydraConfig, environment, log files, working directory (`hydra.job.chdir`), callbacks.
        What it prints goes to a file, so that a terminal has one line for each job.
        """
        cfg, before = self.composed[job.number], os.getcwd()
        with _hydra_config(cfg), env_override(job.environment):
            configure_log(cfg.hydra.job_logging, cfg.hydra.verbose)
            self._starts(job)
            try:
                if cfg.hydra.job.chdir:
                    job.directory.mkdir(parents=True, exist_ok=True)
                    os.chdir(job.directory)
                with _stdout_in(log_of(job)):
                    outcome = run()
            finally:
                os.chdir(before)
            self._ended(job, outcome)
        return outcome

    def run(self, jobs: Sequence[SweepJob]) -> Sequence[Outcome]:
        """Run the jobs; return how each ended, in their order."""
        raise NotImplementedError

    def _job(self, overrides: tuple[str, ...], name: str, number: int) -> SweepJob:
        from seqrun.config.compose import experiment_of
        from seqrun.runs.directory import set_aside

        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        with _hydra_config(cfg):
            directory = Path(cfg.hydra.sweep.dir, str(cfg.hydra.sweep.subdir)).absolute()
            with read_write(cfg.hydra.runtime), open_dict(cfg.hydra.runtime):
                cfg.hydra.runtime.output_dir = str(directory)
            experiment = experiment_of(cfg)
            if experiment.config["resume"] == "never":  # once, not at every retry of the job
                set_aside(directory)
                experiment = Experiment.of({**experiment.config, "resume": "auto"})
            _write_hydra_files(cfg, directory)
            self.composed[number] = cfg
            return SweepJob(
                number=number,
                name=name,
                overrides=tuple(o for o in overrides if not o.startswith("hydra.")),
                experiment=experiment,
                directory=directory,
                environment={k: str(v) for k, v in cfg.hydra.job.env_set.items()},
                before=self.before,
                total=self.total,
            )


class HeldOut:
    """For sweepers: a job that chooses early stopping is measured as the others are."""

    hydra_context: HydraContext
    config: DictConfig

    def with_own(self, job: list[str], keys: list[str], *, grid: bool = False) -> list[str]:
        """Return a job's overrides, with what its own choice of callbacks adds.

        Args:
            job: its overrides.
            keys: those that the command and the search set.
            grid: as in `seqrun.sweeps.validation.of_job`.
        """
        from seqrun.config.compose import may_choose_file
        from seqrun.sweeps.validation import of_job

        if not any(may_choose_file(override.split("=")[0]) for override in job):
            return job
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        return [*job, *of_job(cfg, job, keys, grid=grid)]


def log_of(job: SweepJob) -> Path:
    """Return the file for what a job prints."""
    return job.directory.parent / LOGS / f"{job.directory.name}.log"


@contextmanager
def _stdout_in(path: Path) -> Iterator[None]:
    """Append standard output to a file within the block; leave no file if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, redirect_stdout(file):
        yield
    if not path.stat().st_size:
        path.unlink()


def _is_same(job: SweepJob, other: SweepJob) -> bool:
    return (job.directory, job.experiment) == (other.directory, other.experiment)


@contextmanager
def _hydra_config(cfg: DictConfig) -> Iterator[None]:
    """Let ${hydra:...} refer to this job's configuration within the block."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(cfg)
    try:
        yield
    finally:
        hydra.cfg = before


def _write_hydra_files(cfg: DictConfig, directory: Path) -> None:
    """Write the files that Hydra writes into a job's directory."""
    if cfg.hydra.output_subdir is None:
        return
    folder = directory / str(cfg.hydra.output_subdir)
    folder.mkdir(parents=True, exist_ok=True)
    own, node = _parts(cfg)
    for name, part in (("config", own), ("hydra", node), ("overrides", cfg.hydra.overrides.task)):
        (folder / f"{name}.yaml").write_text(OmegaConf.to_yaml(part), encoding="utf-8")


def _parts(cfg: DictConfig) -> tuple[DictConfig, DictConfig]:
    """Return the experiment alone, and Hydra's node alone."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return own, OmegaConf.masked_copy(cfg, ["hydra"])


class OutcomeReturn(JobReturn):
    """An outcome as Hydra's JobReturn."""

    def __init__(self, outcome: Outcome, config: DictConfig) -> None:
        own, node = _parts(config)
        super().__init__(
            overrides=list(outcome.overrides),
            cfg=own,
            hydra_cfg=node,
            working_dir=str(outcome.directory if node.hydra.job.chdir else Path.cwd()),
            task_name=node.hydra.job.name,
        )
        self.outcome = outcome
        self.status = JobStatus.COMPLETED if outcome.status == "completed" else JobStatus.FAILED
        self.return_value: Any = outcome.value
        if self.status == JobStatus.FAILED:
            self.return_value = RuntimeError(outcome.error)


@contextmanager
def exiting() -> Iterator[None]:
    """Exit the process if a signal or an error in the user's input ends this block.

    Raises:
        SystemExit: 128 + the signal's number, or 2 after an error, which goes to stderr.
    """
    try:
        yield
    except KeyboardInterrupt as interrupted:
        number = getattr(interrupted, "number", signal.SIGINT)
        raise SystemExit(128 + number) from None
    except (ConfigError, RecordError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


def outcome_of(job: JobReturn) -> Outcome:
    """Return how a job ended, whichever launcher ran it."""
    if isinstance(job, OutcomeReturn):
        return job.outcome
    assert job.hydra_cfg is not None
    directory = Path(job.hydra_cfg.hydra.runtime.output_dir)
    common: dict[str, Any] = {"overrides": tuple(job.overrides or ()), "directory": directory}
    if job.status == JobStatus.COMPLETED:
        return Outcome(status="completed", value=job.return_value, **common)
    try:
        error = Results.read(directory).error
    except RecordError:
        error = None
    text = f"{error['type']}: {error['message']}" if error else str(job._return_value)
    return Outcome(status="failed", error=" ".join(text.split()), **common)

"""Build an experiment's parts, run it over its seeds, keep its record."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.backbones.base import BaseBackbone
from seqrun import callbacks, checkpoint, loggers
from seqrun.aggregate import aggregate
from seqrun.callbacks.dispatch import has_step_hook
from seqrun.callbacks import (
    BaseCallback,
    CheckpointCallback,
    Interrupted,
    InterruptionCallback,
    RecordCallback,
)
from seqrun.checks import ConfigError
from seqrun.config import (
    check_values,
    config_hash,
    differences,
    make,
    make_benchmark,
    parts_of,
    plain,
    seeds_of,
    without_secrets,
)
from seqrun.files import remove_temporaries, write_atomically
from seqrun.locks import LOCK_FILE, locked, refuse_locked
from seqrun.loggers import BaseLogger, LocalLogger
from seqrun.loggers.console import ConsoleLogger, show_results, show_verdict
from seqrun.optimizers.base import BaseOptimizer
from seqrun.results import FILE, MATRIX_FILE, RecordError, Results, RunRecord
from seqrun.seeds import (
    SeedJob,
    SeedReports,
    SendingCallback,
    choose_strategy,
    output_of,
    run_seeds,
)
from seqrun.sweep import Outcome, SweepJob
from seqrun.together import Admit, run_together
from seqrun.verdict import Expected, judge, protocol_changes

CONFIG_FILE = "config.yaml"
PRODUCTS = (
    FILE,
    CONFIG_FILE,
    MATRIX_FILE,
    checkpoint.FOLDER,
    "seeds",
    *sorted(
        {
            product
            for module in (callbacks, loggers)
            for name in module.__all__
            for product in getattr(getattr(module, name), "products", ())
        }
    ),
)
"""What a run leaves in its directory, besides Hydra's own record and its lock."""
OF_A_CONFIG = ("algo", "benchmark", "backend")
"""Keys by which the config.yaml of a run is known."""


class RunFailed(CompactHydraException):
    """A job of a multirun failed and said why; the sweeper has to know, without a traceback."""


def run(cfg: DictConfig) -> float | None:
    """Run the experiment that Hydra composed and return its average accuracy, for searches.

    Raises:
        SystemExit: it failed (1) or was interrupted (128 + the signal's number: 130 by Ctrl-C,
            143 by SIGTERM); the record and one message on stderr say so.
        RunFailed: it failed as a job of a multirun, whose other jobs go on.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    interruption = InterruptionCallback()
    try:
        with interruption.listening():
            overrides = list(HydraConfig.get().overrides.task)
            results = run_experiment(plain(cfg), directory, interruption, overrides)
    except Interrupted as error:
        sys.stderr.write(f"interrupted: the same command continues (in {directory})\n")
        raise SystemExit(128 + error.number) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        message = _in_one_line(error)
        sys.stderr.write(f"error: {message} (in {directory}; HYDRA_FULL_ERROR=1 says more)\n")
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise RunFailed(f"this job failed: {directory}") from None
        raise SystemExit(1) from None
    return results.summary["average_accuracy"]["mean"]


def run_job(
    job: SweepJob, interruption: InterruptionCallback, admit: Admit | None = None
) -> Outcome:
    """Run a job of a multirun, or what is left of it; that it failed is an outcome like another.

    Args:
        job: which.
        interruption: what ends the run early.
        admit: as in `run_experiment`.

    Raises:
        KeyboardInterrupt: a signal ended it.
    """
    began = time.perf_counter()
    told: dict[str, Any] = {"overrides": job.overrides, "directory": job.directory}
    try:
        was_done = is_done(job.directory, job.config)
        if was_done:
            results = Results.read(job.directory)
        else:
            results = run_experiment(job.config, job.directory, interruption, job.overrides, admit)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        return Outcome(status="failed", error=_in_one_line(error), **told)
    value, seconds = results.summary["average_accuracy"]["mean"], time.perf_counter() - began
    return Outcome(status="completed", value=value, was_done=was_done, seconds=seconds, **told)


def has_ended(job: SweepJob) -> bool:
    """Return whether `run_job` only tells: the job is completed, or its directory is not its."""
    try:
        return is_done(job.directory, job.config)
    except (ConfigError, RecordError):
        return True


def run_jobs_together(
    jobs: Sequence[SweepJob],
    interruption: InterruptionCallback,
    ended: Callable[[SweepJob, Outcome], None],
) -> None:
    """Run jobs that share their compiled programs, each as `run_job` does.

    Args:
        jobs: at least one, of one structure (see seqrun.grouping), each with one seed.
        interruption: what ends the runs early.
        ended: called with each job and its outcome.

    Raises:
        KeyboardInterrupt: a signal ended them.
    """

    def work_of(job: SweepJob) -> Callable[[Admit], Outcome]:
        return lambda admit: run_job(job, interruption, admit)

    def told(place: int, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        ended(jobs[place], outcome)

    first = build(jobs[0].config, seeds_of(jobs[0].config)[0])
    run_together(first, [work_of(job) for job in jobs], told)


def recorded_outcome(job: SweepJob, *, was_done: bool, otherwise: str) -> Outcome:
    """Return how a job that another process ran has ended, by its record.

    Args:
        job: the job.
        was_done: whether it was completed before.
        otherwise: the error if the record does not say that it completed or why it failed.
    """
    told: dict[str, Any] = {"overrides": job.overrides, "directory": job.directory}
    try:
        results = Results.read(job.directory)
    except RecordError:
        return Outcome(status="failed", error=otherwise, **told)
    if results.status == "completed" and results.config_hash == config_hash(job.config):
        value = results.summary["average_accuracy"]["mean"]
        return Outcome(status="completed", value=value, was_done=was_done, **told)
    if results.status == "failed" and results.error:
        error = f"{results.error['type']}: {results.error['message']}"
        return Outcome(status="failed", error=" ".join(error.split()), **told)
    return Outcome(status="failed", error=otherwise, **told)


def _in_one_line(error: Exception) -> str:
    known = isinstance(error, (ConfigError, RecordError))
    return " ".join((f"{error}" if known else f"{type(error).__name__}: {error}").split())


def run_experiment(
    config: Mapping[str, Any],
    directory: Path,
    interruption: InterruptionCallback | None = None,
    overrides: Sequence[str] = (),
    admit: Admit | None = None,
) -> Results:
    """Run every seed of a plain experiment in `directory`, or what is left of it.

    A run that is done already is shown; an unfinished one continues from its last checkpoints.

    Args:
        config: the plain experiment.
        directory: its run directory.
        interruption: what ends the run early; None = nothing.
        overrides: what of the experiment was said on the command line, for a verdict.
        admit: called with the algorithm of a run that is one of several; nothing is printed then.

    Raises:
        ConfigError: the directory holds another experiment, or another process runs in it.
        RecordError: the directory holds a record that cannot be read.
    """
    if config["resume"] == "never":
        set_aside(directory)
    with locked(directory):
        remove_temporaries(directory)
        if is_done(directory, config):
            results = Results.read(directory)
            verdict = _verdict(config, results, overrides)
            if verdict != results.verdict:
                results.finish("completed", verdict=verdict)
            if admit is None:
                show_results(results)
            return results
        heard = interruption or InterruptionCallback()
        return _run_seeds(config, directory, heard, overrides, admit)


def _verdict(
    config: Mapping[str, Any], results: Results, overrides: Sequence[str]
) -> dict[str, Any] | None:
    """Return the verdict of a reproduction, None of anything else."""
    if config["expected"] is None:
        return None
    changed = protocol_changes(overrides)
    expected = Expected.of(config["expected"])
    return judge(expected, results.runs, measured_on=results.measured_on, changed=changed)


def _run_seeds(
    config: Mapping[str, Any],
    directory: Path,
    interruption: InterruptionCallback,
    overrides: Sequence[str],
    admit: Admit | None,
) -> Results:
    seeds = seeds_of(config)
    first = build(config, seeds[0], directory)
    if (directory / FILE).exists():
        results = Results.read(directory)
        results.reopen()
    else:
        results = Results.start(
            directory,
            name=first.names,
            config_hash=first.config_hash,
            measured_on=first.benchmark.evaluation_split,
            seeds=seeds,
        )
    if not (directory / CONFIG_FILE).exists():  # a kill may have come between the two files
        recorded = without_secrets(config)
        write_atomically(directory / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(recorded)))
    try:
        left = [seed for seed in seeds if not results.has_completed(seed)]
        strategy = choose_strategy(config["seeds_strategy"], first, len(left))
        if strategy == "processes":
            jobs = [
                SeedJob(config=config, seed=seed, directory=results.seed_directory(seed))
                for seed in left
            ]
            run_seeds(jobs, run_seed_job, lambda run, end: results.update(run, completed=end))
            left = []
        elif strategy == "vmap" and len(left) > 1:
            _run_in_one_program(config, first, left, results, interruption)
            left = []
        for seed in left:
            record = RecordCallback(results=results)
            make_seed = partial(_build_admitted, config, seed, results, admit)
            results.update(_fit(make_seed, record, interruption), completed=True)
        for logger in first.loggers:
            if len(seeds) > 1 and isinstance(logger, LocalLogger):
                place = Path(logger.directory or directory)
                aggregate(results, place, figures=logger.figures)
    except KeyboardInterrupt:
        results.finish("interrupted")
        raise
    except Exception as error:
        results.finish("failed", error=error)
        raise
    results.finish("completed", verdict=_verdict(config, results, overrides))
    if admit is None and any(isinstance(logger, ConsoleLogger) for logger in first.loggers):
        (show_results if len(seeds) > 1 else show_verdict)(results)
    return results


def _build_admitted(
    config: Mapping[str, Any], seed: int, results: Results, admit: Admit | None
) -> BaseAlgorithm:
    algorithm = build(config, seed, results.seed_directory(seed))
    if admit is not None:
        admit(algorithm)
    return algorithm


def _run_in_one_program(
    config: Mapping[str, Any],
    first: BaseAlgorithm,
    seeds: Sequence[int],
    results: Results,
    interruption: InterruptionCallback,
) -> None:
    """Run several seeds in step, their compiled calls shared.

    Raises:
        KeyboardInterrupt: a signal came; the seeds have saved a checkpoint.
        SeedFailed: a seed's run failed; the others have ended.
    """
    reports = SeedReports(lambda run, end: results.update(run, completed=end))
    causes: list[Exception] = []

    def work_of(seed: int) -> Callable[[Admit], RunRecord]:
        def work(admit: Admit) -> RunRecord:
            make_seed = partial(_build_admitted, config, seed, results, admit)
            return _fit(make_seed, SendingCallback(to=reports.tell), interruption)

        return work

    def ended(place: int, found: RunRecord | Exception) -> None:
        if isinstance(found, RunRecord):
            reports.tell(found, completed=True)
            return
        causes.append(found)
        where = results.seed_directory(seeds[place])
        reports.failed(seeds[place], f"{_in_one_line(found)} (in {where})")

    run_together(first, [work_of(seed) for seed in seeds], ended)
    reports.finish(causes[0] if causes else None)


def run_seed_job(job: SeedJob) -> RunRecord | Exception | None:
    """Run a seed in this process, a worker; None = a signal ended it."""
    interruption = InterruptionCallback()
    with output_of(job):
        try:
            with interruption.listening():
                return _fit(partial(_build_for_process, job), SendingCallback(), interruption)
        except KeyboardInterrupt:
            return None
        except Exception as error:
            traceback.print_exc()
            return RuntimeError(_in_one_line(error))


def _build_for_process(job: SeedJob) -> BaseAlgorithm:
    algorithm = build(job.config, job.seed, job.directory)
    algorithm.num_threads = algorithm.num_threads or 1
    algorithm.execution["strategy"] = "processes"
    return algorithm


def _fit(
    make_seed: Callable[[], BaseAlgorithm], record: BaseCallback, interruption: InterruptionCallback
) -> RunRecord:
    """Run a seed from its last checkpoint that can be continued from, or from the beginning.

    Whether it can may show only when all parts have seen what they kept; what was restored by then
    goes with the algorithm, and another one tries the checkpoint before.
    """
    refused: list[str] = []
    while True:
        algorithm = make_seed()
        own = sorted(algorithm.callbacks, key=lambda c: isinstance(c, CheckpointCallback))
        # What others did at an event is part of the checkpoint that is written at it.
        algorithm.callbacks = [record, *own, interruption]
        directory = algorithm.run_dir
        assert directory is not None
        start, wrong = checkpoint.latest(directory, config_hash=algorithm.config_hash)
        where = "the one before" if start else "the beginning"
        for message in refused + wrong:
            sys.stderr.write(f"warning: {message}; the run continues from {where}\n")
        checkpoint.set_aside_after(directory, start)
        try:
            return algorithm.fit(resume_from=start)
        except checkpoint.CheckpointError as error:
            if start is None:
                raise
            what = str(error).removeprefix("checkpoint: ")
            refused = [f"{start.path}: this checkpoint is damaged: {what}"]
            checkpoint.set_aside(start)


# ---- parts


def build(config: Mapping[str, Any], seed: int, run_dir: Path | None = None) -> BaseAlgorithm:
    """Make the algorithm of a plain experiment and all that it needs, without loading data.

    Raises:
        ConfigError: an argument that is not allowed, or parts that do not fit together.
    """
    given = {
        "benchmark": make_benchmark(config),
        "backbone": make(config, "backbone", BaseBackbone),
        "optimizer": make(config, "optimizer", BaseOptimizer),
        "callbacks": [make(config, key, BaseCallback) for key in parts_of(config, "callbacks")],
        "loggers": [make(config, key, BaseLogger) for key in parts_of(config, "logger")],
        "training": TrainingOptions(**config["training"]),
        "seed": seed,
        "streams": config["streams"],
        "device": config["device"],
        "num_threads": config["num_threads"],
        "run_dir": run_dir,
        "config": without_secrets(config),
        "config_hash": config_hash(config),
    }
    return make(config, "algo", BaseAlgorithm, provided=list(given))(**given)


def check(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a plain experiment can be built, and its network fits."""
    check_values(config)
    algorithm = build(config, seeds_of(config)[0])
    for logger in algorithm.loggers:
        logger.check()
    algorithm.check_size()
    for callback in algorithm.callbacks:
        if config["seeds_strategy"] == "vmap" and has_step_hook(type(callback)):
            raise ConfigError(
                f"seeds_strategy=vmap: must be auto, processes or sequential with "
                f"{type(callback).__name__}, which is to see every step on the host"
            )


def check_data(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a plain experiment has data that it can be trained on."""
    seeds = seeds_of(config)
    first = build(config, seeds[0])
    first.benchmark.check_data()
    if first.may_normalise_batches:
        for seed in seeds:  # a random order of classes gives tasks other sizes with each
            build(config, seed).check_lengths_beforehand()


# ---- run directories


def is_done(directory: Path, config: Mapping[str, Any]) -> bool:
    """Return whether `directory` holds the completed run of a plain experiment.

    Raises:
        ConfigError: it holds another experiment.
        RecordError: it holds a record that cannot be read.
    """
    if config["resume"] == "never":
        _check_movable(directory)
        return False
    if not (directory / FILE).exists():
        if products := _products_in(directory):
            remedy = ", or resume=never to move that one aside" if _is_of_a_run(directory) else ""
            raise ConfigError(
                f"hydra.run.dir={directory}: has {', '.join(products)} but no record of a run: "
                f"choose another directory{remedy}"
            )
        return False
    results = Results.read(directory)
    if results.config_hash == config_hash(config):
        return results.status == "completed"
    stored = directory / CONFIG_FILE
    old: Any = OmegaConf.to_container(OmegaConf.load(stored)) if stored.exists() else None
    changed = differences(old, without_secrets(config)) if isinstance(old, dict) else []
    what = "; ".join(changed) or "the data or the kind of device differ"
    raise ConfigError(
        f"hydra.run.dir={directory}: holds another experiment ({what}): choose another directory, "
        "or resume=never to move that one aside"
    )


def set_aside(directory: Path) -> None:
    """Rename a directory with a run in it to <name>.1, .2, ...; Hydra's record stays with both.

    Raises:
        ConfigError: it has such files but no run made it, or it must not be moved.
    """
    _check_movable(directory)
    if not _products_in(directory):
        return
    refuse_locked(directory)
    number = 1
    while (aside := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(aside)
    if (aside / ".hydra").is_dir():
        shutil.copytree(aside / ".hydra", directory / ".hydra")


def _products_in(directory: Path) -> list[str]:
    return [name for name in PRODUCTS if (directory / name).exists()]


def _check_movable(directory: Path) -> None:
    """Raise ConfigError if `directory` is to be moved aside, but must stay where it is."""
    products = _products_in(directory)
    if not products:
        return
    if not _is_of_a_run(directory):
        raise ConfigError(
            f"hydra.run.dir={directory}: has {', '.join(products)} but no record of a run: it is "
            "not moved aside; choose another directory"
        )
    here = Path.cwd().resolve()
    if directory.resolve() in (here, *here.parents):
        raise ConfigError(
            f"hydra.run.dir={directory}: must not be the current directory or one around it with "
            "resume=never, which moves it aside"
        )


def _is_of_a_run(directory: Path) -> bool:
    """Return whether a run left its record or its checkpoints, and something that shows it."""
    left = (directory / FILE).exists() or (directory / checkpoint.FOLDER).is_dir()
    return left and ((directory / LOCK_FILE).exists() or _has_config(directory))


def _has_config(directory: Path) -> bool:
    try:
        config = OmegaConf.load(directory / CONFIG_FILE)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return False
    return OmegaConf.is_dict(config) and all(key in config for key in OF_A_CONFIG)

"""Build an experiment's parts, run it over its seeds, keep its record."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.backbones.base import BaseBackbone
from seqrun import checkpoint
from seqrun.aggregate import aggregate
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
from seqrun.locks import is_locked, locked
from seqrun.loggers import BaseLogger, LocalLogger
from seqrun.loggers.console import ConsoleLogger, show_results, show_verdict
from seqrun.optimizers.base import BaseOptimizer
from seqrun.results import FILE, MATRIX_FILE, RecordError, Results, RunRecord
from seqrun.seeds import SeedJob, SendingCallback, choose_strategy, output_of, run_seeds
from seqrun.sweep import Outcome, SweepJob
from seqrun.verdict import Expected, judge, protocol_changes

CONFIG_FILE = "config.yaml"
PRODUCTS = (
    FILE,
    CONFIG_FILE,
    MATRIX_FILE,
    "metrics.jsonl",
    checkpoint.FOLDER,
    "seeds",
    "figures",
)
"""What a run leaves in its directory, besides Hydra's own record and its lock."""


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


def run_job(job: SweepJob, interruption: InterruptionCallback) -> Outcome:
    """Run a job of a multirun, or what is left of it; that it failed is an outcome like another.

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
            results = run_experiment(job.config, job.directory, interruption, job.overrides)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        return Outcome(status="failed", error=_in_one_line(error), **told)
    value, seconds = results.summary["average_accuracy"]["mean"], time.perf_counter() - began
    return Outcome(status="completed", value=value, was_done=was_done, seconds=seconds, **told)


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
) -> Results:
    """Run every seed of a plain experiment in `directory`, or what is left of it.

    A run that is done already is shown; an unfinished one continues from its last checkpoints.

    Args:
        config: the plain experiment.
        directory: its run directory.
        interruption: what ends the run early; None = nothing.
        overrides: what of the experiment was said on the command line, for a verdict.

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
            show_results(results)
            return results
        return _run_seeds(config, directory, interruption or InterruptionCallback(), overrides)


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
        if choose_strategy(config["seeds_strategy"], first, len(left)) == "processes":
            jobs = [
                SeedJob(config=config, seed=seed, directory=results.seed_directory(seed))
                for seed in left
            ]
            run_seeds(jobs, run_seed_job, lambda run, end: results.update(run, completed=end))
            left = []
        for seed in left:
            record = RecordCallback(results=results)
            algorithm = build(config, seed, results.seed_directory(seed))
            results.update(_fit(algorithm, record, interruption), completed=True)
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
    if any(isinstance(logger, ConsoleLogger) for logger in first.loggers):
        (show_results if len(seeds) > 1 else show_verdict)(results)
    return results


def run_seed_job(job: SeedJob) -> RunRecord | Exception | None:
    """Run a seed in this process, a worker; None = a signal ended it."""
    interruption = InterruptionCallback()
    with output_of(job):
        try:
            with interruption.listening():
                algorithm = build(job.config, job.seed, job.directory)
                algorithm.num_threads = algorithm.num_threads or 1
                algorithm.execution["strategy"] = "processes"
                return _fit(algorithm, SendingCallback(), interruption)
        except KeyboardInterrupt:
            return None
        except Exception as error:
            traceback.print_exc()
            return RuntimeError(_in_one_line(error))


def _fit(
    algorithm: BaseAlgorithm, record: BaseCallback, interruption: InterruptionCallback
) -> RunRecord:
    """Run a seed from its last checkpoint on."""
    own = sorted(algorithm.callbacks, key=lambda c: isinstance(c, CheckpointCallback))
    # What others did at an event is part of the checkpoint that is written at it.
    algorithm.callbacks = [record, *own, interruption]
    directory = algorithm.run_dir
    assert directory is not None
    start, wrong = checkpoint.latest(directory, config_hash=algorithm.config_hash)
    for message in wrong:
        where = "the one before" if start else "the beginning"
        sys.stderr.write(f"warning: {message}; the run continues from {where}\n")
    return algorithm.fit(resume_from=start)


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
    """Raise ConfigError unless a plain experiment can be built."""
    check_values(config)
    for logger in build(config, seeds_of(config)[0]).loggers:
        logger.check()


def check_data(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the data of a plain experiment are there or can be got."""
    make_benchmark(config).check_data()


# ---- run directories


def is_done(directory: Path, config: Mapping[str, Any]) -> bool:
    """Return whether `directory` holds the completed run of a plain experiment.

    Raises:
        ConfigError: it holds another experiment.
        RecordError: it holds a record that cannot be read.
    """
    if config["resume"] == "never":
        return False
    if not (directory / FILE).exists():
        strange = [name for name in PRODUCTS if (directory / name).exists()]
        if strange:
            raise ConfigError(
                f"hydra.run.dir={directory}: has {', '.join(strange)} but no record of a run: "
                "choose another directory, or resume=never to move that one aside"
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
    """Rename a directory with a run in it to <name>.1, .2, ...; Hydra's record stays with both."""
    if not any((directory / name).exists() for name in PRODUCTS):
        return
    if is_locked(directory):
        raise ConfigError(f"hydra.run.dir={directory}: another process is running in it")
    number = 1
    while (aside := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(aside)
    if (aside / ".hydra").is_dir():
        shutil.copytree(aside / ".hydra", directory / ".hydra")

"""Run an experiment over its seeds, or continue it, and keep its record."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seqrun.callbacks import (
    BaseCallback,
    CheckpointCallback,
    Interrupted,
    InterruptionCallback,
    RecordCallback,
)
from seqrun.checks import ConfigError
from seqrun.config.build import build
from seqrun.config.compose import experiment_of
from seqrun.config.experiment import Experiment
from seqrun.config.secrets import without_secrets
from seqrun.config.targets import TARGET
from seqrun.evaluation.verdict import Expected, judge, protocol_changes
from seqrun.files import remove_temporaries, write_atomically
from seqrun.loggers import LocalLogger
from seqrun.loggers.console import ConsoleLogger, show_headline, show_results, show_verdict
from seqrun.records import checkpoint
from seqrun.records.locks import locked
from seqrun.records.results import FILE, RecordError, Results, RunRecord
from seqrun.runs.aggregate import aggregate
from seqrun.runs.directory import CONFIG_FILE, is_done, set_aside
from seqrun.runs.processes import output_in
from seqrun.runs.seeds import LOG, SeedJob, SeedReports, SendingCallback, choose_strategy, run_seeds
from seqrun.runs.vmapped import Join, run_vmapped, runs_at_once
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.trainer import Trainer


class RunFailed(CompactHydraException):
    """A job of a multirun failed and has reported why; tells the sweeper, without a traceback."""


def run(cfg: DictConfig) -> Any:
    """Run the experiment that Hydra composed; return what searches optimise, `optimized_metric`.

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
            experiment = experiment_of(cfg)
            is_new = not is_done(directory, experiment)  # the results of one that is are shown
            results = run_experiment(experiment, directory, interruption, overrides)
            if is_new and HydraConfig.get().mode != RunMode.MULTIRUN and _is_silent(experiment):
                show_headline(results)
    except Interrupted as error:
        sys.stderr.write(f"interrupted: the same command continues (in {directory})\n")
        raise SystemExit(128 + error.number) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        message = in_one_line(error)
        sys.stderr.write(f"error: {message} (in {directory}; HYDRA_FULL_ERROR=1 shows more)\n")
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise RunFailed(f"this job failed: {directory}") from None
        raise SystemExit(1) from None
    return results.optimized(experiment.config)


def _is_silent(experiment: Experiment) -> bool:
    """Return True if none of the loggers that were chosen writes to the terminal."""
    targets = [node and node[TARGET] for node in experiment.config["logger"].values()]
    return bool(targets) and not any(str(target).endswith("ConsoleLogger") for target in targets)


def in_one_line(error: Exception) -> str:
    """Return an error's message in one line, with its type unless it is about the user's input."""
    known = isinstance(error, (ConfigError, RecordError))
    text = f"{error}" if known else f"{type(error).__name__}: {error}"
    return without_secrets(" ".join(text.split()))


def run_experiment(
    experiment: Experiment | Mapping[str, Any],
    directory: Path,
    interruption: InterruptionCallback | None = None,
    overrides: Sequence[str] = (),
    join: Join | None = None,
) -> Results:
    """Run every seed of an experiment in `directory`.

    The results of a completed run are shown; an unfinished run continues from its checkpoints.

    Args:
        experiment: the experiment.
        directory: its run directory.
        interruption: ends the run early; None = nothing does.
        overrides: overrides of the command line, which a verdict takes into account.
        join: called with the algorithm if the run shares its program with others; nothing is
            printed then.

    Raises:
        ConfigError: the directory holds another experiment, or another process runs in it.
        RecordError: its record cannot be read.
    """
    experiment = Experiment.of(experiment)
    if experiment.config["resume"] == "never":
        set_aside(directory)
    with locked(directory):
        remove_temporaries(directory)
        if is_done(directory, experiment):
            results = Results.read(directory)
            verdict = _verdict(experiment, results, overrides)
            if verdict != results.verdict:
                results.finish("completed", verdict=verdict)
            if join is None:
                show_results(results)
            return results
        interruption = interruption or InterruptionCallback()
        return _run_seeds(experiment, directory, interruption, overrides, join)


def _verdict(
    experiment: Experiment, results: Results, overrides: Sequence[str]
) -> dict[str, Any] | None:
    """Return the verdict of a reproduction; None if the experiment is not one."""
    if experiment.config["expected"] is None:
        return None
    changed = protocol_changes(overrides)
    expected = Expected.of(experiment.config["expected"])
    return judge(expected, results.runs, measured_on=results.measured_on, changed=changed)


def _run_seeds(
    experiment: Experiment,
    directory: Path,
    interruption: InterruptionCallback,
    overrides: Sequence[str],
    join: Join | None,
) -> Results:
    seeds = experiment.seeds
    first = build(experiment, seeds[0], directory)
    results = _open(experiment, first, directory)
    is_shown = join is None and any(isinstance(each, ConsoleLogger) for each in first.loggers)
    local_loggers = [each for each in first.loggers if isinstance(each, LocalLogger)]
    try:
        remaining = [seed for seed in seeds if not results.has_completed(seed)]
        # For all seeds, not only the remaining: a program of several runs may round differently.
        strategy = choose_strategy(experiment.config["seeds_strategy"], first, len(seeds))
        if strategy == "processes":
            jobs = [
                SeedJob(experiment=experiment, seed=seed, directory=results.seed_directory(seed))
                for seed in remaining
            ]
            run_seeds(jobs, run_seed_job, lambda run, end: results.update(run, completed=end))
            remaining = []
        elif strategy == "vmap" and len(remaining) > 1:
            _run_vmapped_seeds(experiment, first, remaining, results, interruption)
            remaining = []
        built = [first] if len(seeds) == 1 else []
        del first  # if it cannot continue, it must be freed before another is built
        for seed in remaining:
            record = RecordCallback(results=results)
            make_seed = partial(_build_seed, experiment, seed, results, join, built)
            results.update(_fit(make_seed, record, interruption), completed=True)
        for logger in local_loggers if len(seeds) > 1 else []:
            aggregate(results, Path(logger.directory or directory), figures=logger.figures)
    except KeyboardInterrupt:
        results.finish("interrupted")
        raise
    except Exception as error:
        results.finish("failed", error=error)
        raise
    results.finish("completed", verdict=_verdict(experiment, results, overrides))
    if is_shown:
        (show_results if len(seeds) > 1 else show_verdict)(results)
    return results


def _open(experiment: Experiment, first: BaseAlgorithm, directory: Path) -> Results:
    """Start the record of a run, or reopen it to continue; write the configuration."""
    if (directory / FILE).exists():
        results = Results.read(directory)
        results.reopen()
    else:
        results = Results.start(
            directory,
            name=first.names,
            config_hash=experiment.hash,
            measured_on=first.measured_on,
            selected_on=first.selected_on,
            seeds=experiment.seeds,
            numerics=experiment.numerics,
        )
    if not (directory / CONFIG_FILE).exists():  # the run may have been killed between the two files
        recorded = without_secrets(experiment.config)
        write_atomically(directory / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(recorded)))
    return results


def _build_seed(
    experiment: Experiment,
    seed: int,
    results: Results,
    join: Join | None,
    built: list[BaseAlgorithm],
) -> BaseAlgorithm:
    """Return a seed's algorithm: taken out of `built` if it is there, or a new one."""
    algorithm = built.pop() if built else build(experiment, seed, results.seed_directory(seed))
    if join is not None:
        join(algorithm)
    return algorithm


def _run_vmapped_seeds(
    experiment: Experiment,
    first: BaseAlgorithm,
    seeds: Sequence[int],
    results: Results,
    interruption: InterruptionCallback,
) -> None:
    """Run several seeds at once, in one compiled program.

    Raises:
        KeyboardInterrupt: a signal came; the seeds have saved a checkpoint.
        SeedFailed: a seed's run failed; the others have ended.
    """
    reports = SeedReports(lambda run, end: results.update(run, completed=end))
    causes: list[Exception] = []

    def work_of(seed: int) -> Callable[[Join], RunRecord]:
        def work(join: Join) -> RunRecord:
            make_seed = partial(_build_seed, experiment, seed, results, join, [])
            return _fit(make_seed, SendingCallback(to=reports.take), interruption)

        return work

    def on_end(place: int, result: RunRecord | Exception) -> None:
        if isinstance(result, RunRecord):
            reports.take(result, completed=True)
            return
        if not causes:  # only one: an error's traceback keeps its run in memory
            causes.append(result)
        where = results.seed_directory(seeds[place])
        reports.fail(seeds[place], f"{in_one_line(result)} (in {where})")

    run_vmapped(first, runs_at_once(first), [work_of(seed) for seed in seeds], on_end)
    reports.finish(causes[0] if causes else None)


def run_seed_job(job: SeedJob) -> RunRecord | Exception | None:
    """Run a seed in this worker process; return None if a signal ended it."""
    interruption = InterruptionCallback()
    with output_in(job.directory / LOG):
        try:
            with interruption.listening():
                return _fit(partial(_build_for_process, job), SendingCallback(), interruption)
        except KeyboardInterrupt:
            return None
        except Exception as error:
            traceback.print_exc()
            return RuntimeError(in_one_line(error))


def _build_for_process(job: SeedJob) -> BaseAlgorithm:
    algorithm = build(job.experiment, job.seed, job.directory)
    algorithm.engine.execution["strategy"] = "processes"
    return algorithm


_ended: WeakSet[BaseAlgorithm] = WeakSet()
"""Runs of this process that have ended. Their parts form cycles, which only gc.collect() frees."""


def _fit(
    make_seed: Callable[[], BaseAlgorithm], record: BaseCallback, interruption: InterruptionCallback
) -> RunRecord:
    """Train a seed from its last usable checkpoint, or from the beginning.

    A checkpoint may prove damaged only while the parts restore their state from it. The partly
    restored algorithm is then dropped, and a new one tries the previous checkpoint.
    """
    damaged: list[str] = []
    while True:
        if _ended:
            gc.collect()
        algorithm = make_seed()
        own = sorted(algorithm.callbacks, key=lambda c: isinstance(c, CheckpointCallback))
        # Checkpoints come last, so that they include what other callbacks did at the same event.
        algorithm.callbacks = [record, *own, interruption]
        directory = algorithm.run_dir
        assert directory is not None
        start, unusable = checkpoint.latest(directory, config_hash=algorithm.config_hash)
        where = "the one before" if start else "the beginning"
        for message in damaged + unusable:
            sys.stderr.write(f"warning: {message}; the run continues from {where}\n")
        checkpoint.set_aside_after(directory, start)
        try:
            return Trainer(algorithm).fit(resume_from=start)
        except checkpoint.CheckpointError as error:
            if start is None:
                raise
            what = str(error).removeprefix("checkpoint: ")
            damaged = [f"{start.path}: this checkpoint is damaged: {what}"]
            checkpoint.mark_damaged(start)
        finally:
            _ended.add(algorithm)
            del algorithm  # else it stays in memory while the next one is built

"""hydra/sweeper=search: Optuna, with studies that can be continued."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper as PluginsSweeper
from hydra_plugins.seqrun._jobs import BaseLauncher, HeldOut, exiting, outcome_of
from seqrun.checks import ConfigError, boolean, one_of, whole, within
from seqrun.config.experiment import Experiment
from seqrun.config.hash import differences
from seqrun.config.secrets import without_secrets
from seqrun.config.targets import trusted
from seqrun.config.trust import find
from seqrun.evaluation.metrics import lower_is_better
from seqrun.files import json_value
from seqrun.records.locks import locked
from seqrun.sweeps.summary import Outcome, finish
from seqrun.sweeps.validation import command, held_out

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

SETTINGS = "seqrun"
"""Attribute of a study that holds what it is of."""


class OptunaSweeper(HeldOut, PluginsSweeper):
    """Run Optuna's trials until `n_trials` have ended.

    A trial that was running when the search was killed, or failed for another reason than its
    values, is tried again with the same values by the next run of the same command. One that
    diverged is a result like any other: Optuna is told that it failed. Completed trials are not
    repeated. Trials are measured on held-out training data (see seqrun.sweeps.validation) unless
    configured otherwise.

    Args:
        sampler: a sampler, or a partial that makes one from `seed`, called for every batch.
        direction: "maximize" or "minimize", one for each metric of `optimized_metric`; None =
            minimize forgetting, maximize others.
        storage: URL of the study's database; None = only while this search runs.
        study_name: name of the study; None = derived from the experiment and the search space.
        n_trials: total number of trials.
        n_jobs: trials at a time.
        params: key -> search space of its values.
        max_failure_rate: the search ends with an error when more than this fraction of the trials
            of a batch have failed or diverged, in [0, 1].
        search_space: key -> node with `type`, and `choices` or `low`, `high`, `step`, `log`: the
            older form of `params`.
        custom_search_space: dotted name of a function (config, trial) that suggests more values.
        retry_diverged: try diverged trials again, once.

    Raises:
        ConfigError: an argument that is not allowed.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        sampler: Any,
        direction: Any,
        storage: str | None,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        params: Mapping[str, str] | None,
        max_failure_rate: float = 1.0,
        search_space: Mapping[str, Any] | None = None,
        custom_search_space: str | None = None,
        retry_diverged: bool = False,
    ) -> None:
        given = direction if isinstance(direction, Sequence) else [direction]
        given = [direction] if isinstance(direction, str) else given
        self.directions: list[Any] = [getattr(each, "name", each) for each in given]
        for each in self.directions:
            if each is not None:
                one_of("hydra.sweeper.direction", each, ("maximize", "minimize"))
        whole("hydra.sweeper.n_trials", n_trials, 1)
        whole("hydra.sweeper.n_jobs", n_jobs, 1)
        within("hydra.sweeper.max_failure_rate", max_failure_rate, 0.0, 1.0)
        boolean("hydra.sweeper.retry_diverged", retry_diverged)
        if OmegaConf.is_config(sampler):  # from Hydra 1.4 on, parts of a sweeper are not made
            sampler = instantiate(sampler, **trusted(dict(sampler)))
        self.sampler, self.storage, self.study_name = sampler, storage, study_name
        self.n_trials, self.n_jobs, self.params = n_trials, n_jobs, dict(params or {})
        self.max_failure_rate, self.retry_diverged = max_failure_rate, retry_diverged
        self.nodes, self.extend = search_space or {}, None
        if custom_search_space is not None:
            where = f"hydra.sweeper.custom_search_space={custom_search_space}"
            # It is typed, so its package may be named.
            self.extend = find(where, custom_search_space, [custom_search_space.split(".")[0]])

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the missing trials, and end with a summary; return the trials' outcomes.

        Raises:
            SystemExit: a trial failed (1), another process searches here (2), or a signal ended it
                (128 + its number).
        """
        with exiting():
            space, fixed = self._prepare(arguments)
            directory = Path(self.config.hydra.sweep.dir).absolute()
            directory.mkdir(parents=True, exist_ok=True)
            with locked(directory):
                study = self._study(space, self._settings(space))
                OmegaConf.save(self.config, directory / "multirun.yaml")
                outcomes, too_many = self._run(study, space, fixed, directory)
                status = finish(outcomes, directory, self.metrics)
                _show_best(study, self.config, self.metrics)
                if too_many:
                    raise ConfigError(too_many)
        if status:
            raise SystemExit(status)
        return outcomes

    def _prepare(
        self, arguments: Sequence[str]
    ) -> tuple[dict[str, BaseDistribution], dict[str, str]]:
        """Return what is searched and what is fixed, and derive the options that were left open.

        Raises:
            ConfigError: nothing is searched, or the options do not fit together.
        """
        from optuna.samplers import GridSampler

        from hydra_plugins.seqrun._space import grid_of, space_of, space_of_nodes

        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        space, fixed = space_of(lines)
        older = space_of_nodes(self.nodes)
        space |= {key: chosen for key, chosen in older.items() if key not in (*space, *fixed)}
        if not space and self.extend is None:
            raise ConfigError(
                "hydra.sweeper.params: nothing to search: give a key several values, such as "
                "optimizer.lr=interval(0.01,1)"
            )
        if getattr(self.sampler, "func", None) is GridSampler:
            grid = grid_of(lines, space)
            self.sampler = self.sampler(grid)
            self.n_trials = min(self.n_trials, math.prod(map(len, grid.values())))
        self.keys = [*space, *fixed]
        fixed |= held_out(self.config, self.keys)
        self.base = self._composed(fixed)
        metrics = self.base.config["optimized_metric"]
        self.metrics = [metrics] if isinstance(metrics, str) else list(metrics)
        self._set_directions()
        self.study_name = self.study_name or self._name(space)
        return space, fixed

    def _composed(self, fixed: Mapping[str, str]) -> Experiment:
        """Return the experiment without what is searched."""
        from seqrun.config.compose import experiment_of

        lines = [f"{key}={value}" for key, value in fixed.items()]
        return experiment_of(self.hydra_context.config_loader.load_sweep_config(self.config, lines))

    def _set_directions(self) -> None:
        """Fill in directions that follow from the metrics."""
        if self.directions == [None]:
            self.directions = [
                "minimize" if lower_is_better(metric) else "maximize" for metric in self.metrics
            ]
        if len(self.directions) != len(self.metrics) or None in self.directions:
            raise ConfigError(
                f"hydra.sweeper.direction={self.directions}: must have one for each of "
                f"optimized_metric={self.metrics}"
            )

    def _study(self, space: Mapping[str, BaseDistribution], settings: Mapping[str, Any]) -> Study:
        """Open the study; enqueue again the trials that are to be repeated.

        Raises:
            ConfigError: the study is one of other settings.
        """
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        name, storage = self.study_name, self.storage
        names = [s.study_name for s in optuna.get_all_study_summaries(storage)] if storage else []
        if name in names and storage is not None:
            self._refuse_another(optuna.load_study(study_name=name, storage=storage), settings)
        study = optuna.create_study(
            study_name=name, storage=storage, directions=self.directions, load_if_exists=True
        )
        if SETTINGS not in study.user_attrs:
            study.set_user_attr(SETTINGS, json.dumps(settings))
        trials = study.get_trials(deepcopy=False)
        known = [t.params for t in trials if t.state == TrialState.COMPLETE]
        known += [t.system_attrs["fixed_params"] for t in trials if t.state == TrialState.WAITING]
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
            is_open = trial.state in (TrialState.RUNNING, TrialState.FAIL)
            if is_open and not self._is_kept(trial) and trial.params not in known:
                if trial.params.keys() >= space.keys():
                    study.enqueue_trial(trial.params)
                    known.append(trial.params)
        return study

    def _is_kept(self, trial: Any) -> bool:
        """Return True if a trial has ended for good."""
        diverged = trial.user_attrs.get("diverged", False) and not self.retry_diverged
        return trial.state.name == "COMPLETE" or diverged

    def _settings(self, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Return what a study is of, as plain data."""
        return {
            "experiment": json_value(without_secrets(self.base.config)),
            "space": {key: repr(chosen) for key, chosen in space.items()},
            "optimized_metric": self.metrics,
        }

    def _refuse_another(self, study: Study, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError unless a study is of these settings; name what differs."""
        directions = [direction.name.lower() for direction in study.directions]
        pairs = {"hydra.sweeper.direction": (directions, self.directions)}
        stored = json.loads(study.user_attrs.get(SETTINGS, "{}")) or settings
        changed = []
        if settings:
            changed = differences(stored["experiment"], settings["experiment"])
            was, now = stored["space"], settings["space"]
            pairs |= {key: (was.get(key, "-"), now.get(key, "-")) for key in {**was, **now}}
            key = "optimized_metric"
            pairs[key] = stored[key], settings[key]
        changed += [f"{key}: {was} -> {now}" for key, (was, now) in pairs.items() if was != now]
        if changed:
            raise ConfigError(
                f"hydra.sweeper.study_name={self.study_name}: is a study of other settings "
                f"({'; '.join(changed)}): set another name, or another hydra.sweep.dir"
            )

    def _name(self, space: Mapping[str, BaseDistribution]) -> str:
        """Name a study after its experiment and search space, so that no two searches share one."""
        text = json.dumps(sorted((key, repr(chosen)) for key, chosen in space.items()))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.base.hash}-{digest}"

    def _run(
        self,
        study: Study,
        space: dict[str, BaseDistribution],
        fixed: dict[str, str],
        directory: Path,
    ) -> tuple[list[Outcome], str]:
        """Run batches of trials.

        Returns:
            The outcomes of all trials, earlier ones included, and why the search ended before
            `n_trials`, or "".
        """
        ended = [trial for trial in study.get_trials() if self._is_kept(trial)]
        outcomes = [_earlier(trial, directory) for trial in ended]
        first, too_many = len(outcomes), ""
        if isinstance(self.launcher, BaseLauncher):
            self.launcher.total = self.n_trials
            self.launcher.shared = [f"{key}={value}" for key, value in fixed.items()]
        while (left := self.n_trials - len(outcomes)) > 0 and not too_many:
            self._renew_sampler(study)
            trials = [study.ask(space) for _ in range(min(left, self.n_jobs))]
            if self.extend is not None:
                for trial in trials:
                    self.extend(self.config, trial)
            batch = [
                self.with_own([f"{k}={v}" for k, v in (fixed | t.params).items()], self.keys)
                for t in trials
            ]
            if isinstance(self.launcher, BaseLauncher):
                self.launcher.before = len(outcomes)
            returns = self.launcher.launch(batch, initial_job_idx=len(outcomes) - first)
            ended_now = [outcome_of(job) for job in returns]
            for trial, outcome in zip(trials, ended_now, strict=True):
                outcomes.append(_tell(study, trial, outcome, directory))
            failed = sum(outcome.status != "completed" for outcome in outcomes[-len(trials) :])
            if failed / len(trials) > self.max_failure_rate:
                too_many = (
                    f"hydra.sweeper.max_failure_rate={self.max_failure_rate}: {failed} of "
                    f"{len(trials)} trials of a batch have failed; the same command goes on"
                )
        return outcomes, too_many

    def _renew_sampler(self, study: Study) -> None:
        """Change the sampler's seed, with which a continued search would repeat its proposals."""
        if not isinstance(self.sampler, functools.partial):
            study.sampler = self.sampler
            self.sampler.reseed_rng()
            return
        seed = self.sampler.keywords.get("seed")
        if seed is not None:
            seeds = np.random.SeedSequence([seed, len(study.get_trials(deepcopy=False))])
            seed = int(seeds.generate_state(1)[0])
        study.sampler = self.sampler(seed=seed)


def _tell(study: Study, trial: Trial, outcome: Outcome, directory: Path) -> Outcome:
    """Tell Optuna the value; return the outcome, diverged if the value is not finite.

    NaN and infinity count as failures, as they could win or raise.
    """
    from optuna.trial import TrialState

    trial.set_user_attr("directory", os.path.relpath(outcome.directory, directory))
    trial.set_user_attr("overrides", list(outcome.overrides))
    values: list[Any] = outcome.value if isinstance(outcome.value, list) else [outcome.value]
    state = TrialState.COMPLETE
    if any(value is None or not math.isfinite(value) for value in values):
        if outcome.has_diverged or outcome.status == "completed":
            error = outcome.error or "no average accuracy"
            outcome = replace(outcome, status="diverged", error=error)
        trial.set_user_attr("error", outcome.error)
        trial.set_user_attr("diverged", outcome.status == "diverged")
        state = TrialState.FAIL
    try:
        study.tell(trial, values if state == TrialState.COMPLETE else None, state)
    except RuntimeError as error:  # GridSampler stops the study at its last point
        if "Study.stop" not in str(error):
            raise
    return outcome


def _earlier(trial: Any, directory: Path) -> Outcome:
    is_complete = trial.state.name == "COMPLETE"
    values = (trial.values if len(trial.values) > 1 else trial.value) if is_complete else None
    return Outcome(
        overrides=tuple(trial.user_attrs["overrides"]),
        directory=directory / trial.user_attrs["directory"],
        status="completed" if is_complete else "diverged",
        value=values,
        error=trial.user_attrs.get("error"),
        was_done=True,
    )


def _show_best(study: Study, config: DictConfig, metrics: Sequence[str]) -> None:
    """Print the best trial, or all that no other trial is better than in every metric."""
    completed = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    if not completed:
        sys.stdout.write("no trial has completed: a smaller optimizer.lr may help\n")
        return
    for best in [study.best_trial] if len(metrics) == 1 else study.best_trials:
        chosen = dict(line.split("=", 1) for line in best.user_attrs["overrides"])
        best_command, on_other_data = command(config, chosen)
        how = " on the test data, which selected it"
        if on_other_data:
            how = "; to measure it on the test data, once"
        values = ", ".join(f"{100 * value:.1f} %" for value in best.values)
        sys.stdout.write(
            f"best of {len(completed)} completed trials: {values}{how}: {best_command}\n"
        )

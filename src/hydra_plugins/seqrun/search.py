"""hydra/sweeper=search: Optuna, with studies that can be continued."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.seqrun._jobs import HeldOut, exiting, outcome_of
from seqrun.checks import one_of, whole
from seqrun.records.locks import locked
from seqrun.sweeps.summary import Outcome, finish
from seqrun.sweeps.validation import command, held_out

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial


class OptunaSweeper(HeldOut, Sweeper):
    """Run Optuna's trials until `n_trials` have completed, or have failed in this run.

    A trial that failed, or was running when the search was killed, is tried again with the same
    values by the next run of the same command. Completed trials are not repeated. Trials are
    measured on held-out training data (see seqrun.sweeps.validation) unless configured otherwise.

    Args:
        sampler: a sampler, or a partial that makes one from `seed`, called for every batch.
        direction: "maximize" or "minimize" the average accuracy.
        storage: URL of the study's database.
        study_name: name of the study; None = derived from the experiment and the search space.
        n_trials: total number of trials.
        n_jobs: trials at a time.
        params: key -> search space of its values.

    Raises:
        ConfigError: an argument that is not allowed.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        sampler: Any,
        direction: str,
        storage: str,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        params: dict[str, str] | None,
    ) -> None:
        one_of("hydra.sweeper.direction", direction, ("maximize", "minimize"))
        whole("hydra.sweeper.n_trials", n_trials, 1)
        whole("hydra.sweeper.n_jobs", n_jobs, 1)
        self.sampler, self.direction = sampler, direction
        self.storage, self.study_name = storage, study_name
        self.n_trials, self.n_jobs, self.params = n_trials, n_jobs, dict(params or {})

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[Outcome]:
        """Run the missing trials, and end with a summary.

        Raises:
            SystemExit: a trial failed (1), another process searches here (2), or a signal ended it
                (128 + its number).
        """
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

        lines = [f"{key}={value}" for key, value in self.params.items()]
        space, fixed = create_params_from_overrides([*lines, *arguments])
        space = {key: chosen for key, chosen in space.items() if key not in fixed}
        self.keys = [*space, *fixed]
        fixed |= held_out(self.config, self.keys)
        directory = Path(self.config.hydra.sweep.dir).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, directory / "multirun.yaml")
        with exiting(), locked(directory):
            study = self._study(space, fixed)
            outcomes = self._run(study, space, fixed, directory)
            status = finish(outcomes, directory)
            _show_best(study, self.config)
        if status:
            raise SystemExit(status)
        return outcomes

    def _study(self, space: dict[str, Any], fixed: dict[str, str]) -> Study:
        """Open the study; enqueue again the trials that failed or never ended."""
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=self.study_name or self._name(space, fixed),
            storage=self.storage,
            direction=self.direction,
            load_if_exists=True,
        )
        trials = study.get_trials(deepcopy=False)
        known = [t.params for t in trials if t.state == TrialState.COMPLETE]
        known += [t.system_attrs["fixed_params"] for t in trials if t.state == TrialState.WAITING]
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
            if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params not in known:
                if trial.params.keys() == space.keys():
                    study.enqueue_trial(trial.params)
                    known.append(trial.params)
        return study

    def _name(self, space: dict[str, Any], fixed: dict[str, str]) -> str:
        """Name a study after its experiment and search space, so that no two searches share one."""
        from seqrun.config.compose import experiment_of

        lines = [f"{key}={value}" for key, value in fixed.items()]
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, lines)
        text = json.dumps(sorted((key, repr(chosen)) for key, chosen in space.items()))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{experiment_of(cfg).hash}-{digest}"

    def _run(
        self,
        study: Study,
        space: dict[str, Any],
        fixed: dict[str, str],
        directory: Path,
    ) -> list[Outcome]:
        """Run batches of trials; return the outcomes of all trials, earlier ones included."""
        from optuna.trial import TrialState

        completed = study.get_trials(states=(TrialState.COMPLETE,))
        outcomes = [_earlier(trial, directory) for trial in completed]
        first = len(outcomes)
        while (left := self.n_trials - len(outcomes)) > 0:
            self._renew_sampler(study)
            trials = [study.ask(dict(space)) for _ in range(min(left, self.n_jobs))]
            batch = [
                self.with_own([f"{k}={v}" for k, v in (fixed | t.params).items()], self.keys)
                for t in trials
            ]
            returns = self.launcher.launch(batch, initial_job_idx=len(outcomes) - first)
            for trial, job in zip(trials, returns, strict=True):
                outcomes.append(outcome_of(job))
                _tell(study, trial, outcomes[-1], directory)
        return outcomes

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


def _tell(study: Study, trial: Trial, outcome: Outcome, directory: Path) -> None:
    """Tell Optuna the value; NaN and infinity count as failures, as they could win or raise."""
    from optuna.trial import TrialState

    trial.set_user_attr("directory", os.path.relpath(outcome.directory, directory))
    trial.set_user_attr("overrides", list(outcome.overrides))
    if outcome.value is not None and math.isfinite(outcome.value):
        study.tell(trial, outcome.value)
        return
    trial.set_user_attr("error", outcome.error or "no average accuracy")
    study.tell(trial, state=TrialState.FAIL)


def _earlier(trial: Any, directory: Path) -> Outcome:
    return Outcome(
        overrides=tuple(trial.user_attrs["overrides"]),
        directory=directory / trial.user_attrs["directory"],
        status="completed",
        value=trial.value,
        was_done=True,
    )


def _show_best(study: Study, config: DictConfig) -> None:
    from optuna.trial import TrialState

    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not completed:
        return
    best = study.best_trial
    assert best.value is not None
    chosen = dict(line.split("=", 1) for line in best.user_attrs["overrides"])
    best_command, on_other_data = command(config, chosen)
    how = " on the test data, which selected it"
    if on_other_data:
        how = "; to measure it on the test data, once"
    sys.stdout.write(
        f"best of {len(completed)} completed trials: {100 * best.value:.1f} %{how}: "
        f"{best_command}\n"
    )

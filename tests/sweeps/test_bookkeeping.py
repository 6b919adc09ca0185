"""A search's own bookkeeping, without a search: duplicates, and what Optuna is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from hydra_plugins.seqrun._jobs import BaseLauncher, outcome_of
from seqrun.sweeps.summary import Outcome, SweepJob


class Launcher(BaseLauncher):
    """Make one experiment of all jobs with the same learning rate; run them in no time."""

    def __init__(self) -> None:
        heard: Any = SimpleNamespace(
            on_job_start=lambda **_: self.heard.append("start"),
            on_job_end=lambda **_: self.heard.append("end"),
        )
        self.heard: list[str] = []
        self.hydra_context: Any = SimpleNamespace(callbacks=heard)
        self.task_function: Any = None
        self.ran: list[tuple[str, ...]] = []
        self.experiments: dict[str, Any] = {}

    def run(self, jobs: Sequence[SweepJob]) -> Sequence[Outcome]:
        """Return the rate of each as its value."""
        self.ran += [job.overrides for job in jobs]
        return [
            Outcome(
                overrides=job.overrides,
                directory=job.directory,
                status="completed",
                value=float(job.directory.name),
            )
            for job in jobs
        ]

    def _job(self, overrides: tuple[str, ...], name: str, number: int) -> SweepJob:
        rate = str(float(overrides[0].partition("=")[2]))
        experiment: Any = SimpleNamespace(rate=rate)
        self.composed[number] = OmegaConf.create(
            {"hydra": {"job": {"name": "run", "chdir": False}}}
        )
        return SweepJob(
            number=number,
            name=name,
            overrides=overrides,
            experiment=self.experiments.setdefault(rate, experiment),
            directory=Path(rate),
        )


def test_a_job_that_is_launched_twice():
    """It runs once; each of both has the outcome, and the overrides that it was launched with."""
    launcher = Launcher()
    batch = [("lr=0.1",), ("lr=0.20",), ("lr=0.10",), ("lr=0.2",)]
    outcomes = [outcome_of(job) for job in launcher.launch(batch, initial_job_idx=3)]
    assert launcher.ran == batch[:2]
    assert [outcome.overrides for outcome in outcomes] == batch
    assert [outcome.value for outcome in outcomes] == [0.1, 0.2, 0.1, 0.2]
    assert launcher.heard == ["start", "start", "end", "end"]
    returned = launcher.launch(batch, initial_job_idx=0)
    assert [tuple(job.overrides or ()) for job in returned] == batch


@pytest.mark.parametrize("value", [0.5, 0.0, None, math.nan, math.inf, -math.inf])
def test_what_optuna_is_told(value: float | None, tmp_path: Path):
    """A value that is not finite is a failure: infinity would win, or lose, every search."""
    optuna = pytest.importorskip("optuna")
    from hydra_plugins.seqrun.search import _earlier, _tell

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    outcome = Outcome(
        overrides=("lr=0.1",), directory=tmp_path / "job", status="completed", value=value
    )
    _tell(study, study.ask(), outcome, tmp_path)
    (trial,) = study.trials
    assert trial.user_attrs["overrides"] == ["lr=0.1"] and trial.user_attrs["directory"] == "job"
    if value is None or not math.isfinite(value):
        assert trial.state.name == "FAIL" and trial.user_attrs["error"] == "no average accuracy"
    else:
        assert (trial.state.name, trial.value) == ("COMPLETE", value)
        again = _earlier(trial, tmp_path)
        assert (again.overrides, again.directory, again.value, again.was_done) == (
            outcome.overrides,
            outcome.directory,
            value,
            True,
        )


@pytest.mark.ci
def test_what_a_search_tries_again(tmp_path: Path):
    """Trials that failed or were killed, once each; none that has completed meanwhile."""
    optuna = pytest.importorskip("optuna")
    from hydra_plugins.seqrun.search import OptunaSweeper

    space = {"lr": optuna.distributions.UniformDistribution(0.001, 0.1)}
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    sweeper = OptunaSweeper(None, "maximize", storage, "mine", 1, 1, None)
    study = sweeper._study(space, {})
    completed, failed, killed, failed_first = (study.ask(dict(space)) for _ in range(4))
    study.tell(completed, 0.5)
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    study.tell(failed_first, state=optuna.trial.TrialState.FAIL)
    study.enqueue_trial(failed_first.params)
    study.tell(study.ask(dict(space)), 0.4)  # the same values as of `failed_first`
    for _ in range(2):  # a second search enqueues nothing twice
        study = sweeper._study(space, {})
        waiting = [t for t in study.trials if t.state.name == "WAITING"]
        assert [t.system_attrs["fixed_params"] for t in waiting] == [failed.params, killed.params]
    assert study.trials[killed.number].state.name == "FAIL"

"""Optuna searches: no completed trial is repeated, failed and killed ones are tried again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from sweeps.conftest import MINE, TINY

optuna = pytest.importorskip("optuna")

SPACE = "optimizer.lr=tag(log, interval(0.001, 0.1))"
SEARCH = ("-m", "hydra/sweeper=search", "hydra.sweep.dir=search", *TINY, SPACE, "seed=1")


def trials() -> list:
    """Return the trials of the one study."""
    storage = "sqlite:///search/optuna.db"
    (study,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=study.study_name, storage=storage).trials


def states() -> list[str]:
    """Return the states of the trials."""
    return [trial.state.name for trial in trials()]


@pytest.mark.ci
def test_a_search_continues_where_it_stopped(cli):
    status, out, _ = cli(*SEARCH, "hydra.sweeper.n_trials=2")
    assert status == 0 and states() == ["COMPLETE"] * 2
    status, out, err = cli(*SEARCH, "hydra.sweeper.n_trials=2")
    assert status == 0 and states() == ["COMPLETE"] * 2  # n_trials is the total
    study = optuna.load_study(None, "sqlite:///search/optuna.db")
    study.ask({"optimizer.lr": optuna.distributions.LogUniformDistribution(0.001, 0.1)})
    killed = trials()[-1]  # as after a kill while the trial runs
    assert killed.state.name == "RUNNING"
    status, out, _ = cli(*SEARCH, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    assert status == 0 and states() == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 2
    assert trials()[3].params == killed.params
    rates = [trial.params["optimizer.lr"] for trial in trials() if trial.state.name == "COMPLETE"]
    assert len(set(rates)) == 4 and all(0.001 <= rate <= 0.1 for rate in rates)
    assert "4 of 4 jobs completed" in out
    best = max(trials(), key=lambda t: t.value or 0)
    told = out.splitlines()[-1]
    assert told.startswith("best of 4 completed trials: ")
    assert f"optimizer.lr={best.params['optimizer.lr']}" in told
    for trial in trials():
        if trial.value is not None:
            record = json.loads(
                Path("search", trial.user_attrs["directory"], "results.json").read_text(
                    encoding="utf-8"
                )
            )
            assert trial.value == record["summary"]["average_accuracy"]["mean"]


@pytest.mark.ci
def test_a_failed_trial_fails_in_optuna_and_is_tried_again(cli, mypkg):
    (mypkg / "do").write_text("raise RuntimeError('the disk is full')", encoding="utf-8")
    status, out, err = cli(*SEARCH, *MINE, "hydra.sweeper.n_trials=2")
    assert status == 1 and states() == ["FAIL", "COMPLETE"]
    assert trials()[0].user_attrs["error"] == "RuntimeError: the disk is full"
    status, out, err = cli(*SEARCH, *MINE, "hydra.sweeper.n_trials=2")
    assert status == 0 and states() == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials()[2].params == trials()[0].params


@pytest.mark.ci
@pytest.mark.full
def test_an_interrupted_trial_is_tried_by_the_next_search(cli, mypkg):
    (mypkg / "do").write_text("os.kill(os.getpid(), signal.SIGTERM)", encoding="utf-8")
    status, out, err = cli(*SEARCH, *MINE, "hydra.sweeper.n_trials=1")
    assert status == 143 and states() == ["RUNNING"]
    status, out, err = cli(*SEARCH, *MINE, "hydra.sweeper.n_trials=1")
    assert status == 0 and states() == ["FAIL", "COMPLETE"]
    assert trials()[1].params == trials()[0].params


@pytest.mark.ci
@pytest.mark.full
def test_every_experiment_has_its_own_study(cli):
    """Trials of another experiment in the same directory do not count."""
    cli(*SEARCH, "hydra.sweeper.n_trials=1")
    cli(*SEARCH, "hydra.sweeper.n_trials=1", "backbone.width=8")
    assert len(optuna.get_all_study_summaries("sqlite:///search/optuna.db")) == 2


@pytest.mark.ci
def test_the_checked_in_search_selects_on_validation(cli):
    status, out, _ = cli("sweeps=optuna_ewc", *TINY, "algo=ewc", "hydra.sweeper.n_trials=1")
    assert status == 0
    (record,) = Path("sweep_runs/optuna_ewc").glob("*/results.json")
    assert json.loads(record.read_text(encoding="utf-8"))["measured_on"] == "validation"
    assert "to measure it on the test data, once: python run.py" in out.splitlines()[-1]
    assert "sweeps=" not in out.splitlines()[-1]


def measured_on(directory: Path) -> set[str]:
    """Return the data that the runs in a sweep's directory were measured on."""
    paths = directory.glob("*/results.json")
    return {json.loads(path.read_text(encoding="utf-8"))["measured_on"] for path in paths}


@pytest.mark.ci
def test_any_search_selects_on_validation_and_its_best_is_tested_once(cli):
    status, out, _ = cli(*SEARCH, "hydra.sweeper.n_trials=2")
    assert status == 0 and measured_on(Path("search")) == {"validation"}
    told = out.splitlines()[-1]
    assert "%; to measure it on the test data, once: python run.py " in told
    words = shlex.split(told.split("python run.py ")[1])
    assert words.count("benchmark.validation_fraction=0.0") == 1
    assert sum(word.startswith("benchmark.validation_fraction") for word in words) == 1
    status, _, _ = cli(*words, "hydra.run.dir=tested/best")
    assert status == 0 and measured_on(Path("tested")) == {"test"}


@pytest.mark.ci
@pytest.mark.parametrize("how", ["search", "chosen", "grid"])
def test_a_search_with_early_stopping_measures_on_held_out_data(cli, how):
    """Its best is then measured on the test data, and early stopping watches the held-out part.

    Also where the search chooses it.
    """
    watched = ("callbacks=[metrics,early_stopping]", "hydra.sweep.dir=search")
    if how == "chosen":
        watched = ("callbacks=choice([early_stopping])", "hydra.sweep.dir=search")
    if how != "grid":
        status, out, _ = cli(*SEARCH, *watched, "hydra.sweeper.n_trials=1")
    else:
        status, out, _ = cli("sweeps=learning_rate", *TINY, *watched, "optimizer.lr=0.01")
    assert status == 0 and measured_on(Path("search")) == {"validation"}
    if how == "grid":
        return
    words = shlex.split(out.splitlines()[-1].split("python run.py ")[1])
    status, _, _ = cli(*words, "hydra.run.dir=tested/best")
    record = json.loads(Path("tested/best/results.json").read_text(encoding="utf-8"))
    assert status == 0
    assert (record["measured_on"], record["selected_on"]) == ("test", "validation")


@pytest.mark.ci
def test_a_selection_on_the_test_data_is_reported(cli):
    status, out, _ = cli(*SEARCH, "hydra.sweeper.n_trials=1", "benchmark.validation_fraction=0")
    assert status == 0 and measured_on(Path("search")) == {"test"}
    told = out.splitlines()[-1]
    assert "once" not in told and "% on the test data, which selected it: python run.py" in told
    assert "benchmark.validation_fraction=0 " in f"{told} "


RATES = "optimizer.lr=0.01,1e30"
GRID = ("-m", "hydra/sweeper=search", "hydra/sweeper/sampler=grid", "hydra.sweep.dir=search", *TINY)


@pytest.mark.ci
def test_a_diverged_trial_has_ended(cli):
    """It is a result: told to Optuna, counted, and tried again only if asked."""
    for _ in range(2):
        status, out, err = cli(*GRID, RATES)
        assert status == 0 and sorted(states()) == ["COMPLETE", "FAIL"]
        assert "1 of 2 jobs completed, 1 diverged" in out
    assert "TrainingDiverged" not in err  # it has not run again
    status, out, _ = cli(*GRID, RATES, "hydra.sweeper.retry_diverged=true")
    assert status == 0 and sorted(states()) == ["COMPLETE", "FAIL", "FAIL"]


@pytest.mark.ci
def test_a_search_ends_when_too_many_trials_fail(cli):
    argv = (*GRID, "optimizer.lr=1e30,2e30,3e30", "hydra.sweeper.n_jobs=2")
    status, out, err = cli(*argv, "hydra.sweeper.max_failure_rate=0.9")
    assert status == 2 and states() == ["FAIL", "FAIL"] and "0 of 2 jobs completed" in out
    assert "hydra.sweeper.max_failure_rate=0.9: 2 of 2 trials of a batch have failed" in err
    status, out, _ = cli(*argv)
    assert status == 0 and states() == ["FAIL"] * 3  # the same search goes on
    assert out.splitlines()[-1] == "no trial has completed: a smaller optimizer.lr may help"


@pytest.mark.ci
@pytest.mark.parametrize("metric", ["average_accuracy", "average_forgetting"])
def test_optunas_own_name_is_the_same_search(cli, metric):
    """It maximises, or minimises forgetting, whatever the plugin's default is."""
    status, out, _ = cli(
        "-m", "hydra/sweeper=optuna", "hydra.sweep.dir=search", *TINY, SPACE,
        "hydra.sweeper.n_trials=1", f"optimized_metric={metric}",
    )  # fmt: skip
    assert status == 0 and states() == ["COMPLETE"]
    (study,) = optuna.get_all_study_summaries("sqlite:///search/optuna.db")
    expected = "MINIMIZE" if metric == "average_forgetting" else "MAXIMIZE"
    assert study.direction.name == expected
    assert metric.replace("_", " ") in out


@pytest.mark.ci
def test_several_metrics(cli):
    """Each has a direction; all trials that no other is better than are shown."""
    metrics = "optimized_metric=[average_accuracy,average_forgetting]"
    status, out, _ = cli(*SEARCH, metrics, "hydra.sweeper.n_trials=2")
    assert status == 0 and states() == ["COMPLETE"] * 2
    for trial in trials():
        path = Path("search", trial.user_attrs["directory"], "results.json")
        summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
        names = ("average_accuracy", "average_forgetting")
        assert trial.values == [summary[name]["mean"] for name in names]
    assert out.splitlines()[-1].startswith("best of 2 completed trials: ")
    status, _, err = cli(*SEARCH, metrics, "hydra.sweeper.direction=maximize")
    assert status == 2 and "must have one for each of optimized_metric" in err


@pytest.mark.ci
def test_values_that_a_function_suggests(cli, mypkg):
    package = mypkg / "mine.py"
    package.write_text(
        "def more(config, trial):\n    trial.suggest_int('backbone.width', 5, 6)\n",
        encoding="utf-8",
    )
    status, _, err = cli(
        *SEARCH, "hydra.sweeper.n_trials=1", "hydra.sweeper.custom_search_space=mine.more"
    )
    assert status == 0, err
    assert trials()[0].params.keys() == {"optimizer.lr", "backbone.width"}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("backbone.width=8",), "backbone.width: 16 -> 8"),
        (("hydra.sweeper.direction=minimize",), "hydra.sweeper.direction: "),
        (("optimized_metric=learning_accuracy",), "optimized_metric: "),
        (("optimizer.lr=interval(0.1,0.2)",), "optimizer.lr: "),
        (("optimizer.weight_decay=interval(0.1,0.2)",), "optimizer.weight_decay: - -> "),
    ],
    ids=["experiment", "direction", "metric", "space", "key"],
)
def test_a_study_of_other_settings_is_refused(cli, changed, named):
    """Before anything runs, and naming the keys: its trials could not be compared."""
    name = ("hydra.sweeper.study_name=mine", "hydra.sweeper.n_trials=1")
    assert cli(*SEARCH, *name)[0] == 0
    before = sorted(Path("search").rglob("*"))
    status, _, err = cli(*SEARCH, *name, *changed)
    assert status == 2 and f"study_name=mine: is a study of other settings ({named}" in err
    assert sorted(Path("search").rglob("*")) == before and states() == ["COMPLETE"]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=0.1", "hydra.sweeper.params: nothing to search: give a key several values"),
        ("hydra/sweeper/sampler=grid", "must be choice(...) or range(...) with hydra/sweeper/"),
        ("hydra.sweeper.max_failure_rate=2", "max_failure_rate=2: must be a number in [0, 1]"),
        ("hydra.sweeper.custom_search_space=nowhere.f", "there is no module nowhere"),
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: must be an integer >= 1"),
        ("hydra.sweeper.direction=up", "hydra.sweeper.direction='up': must be one of maximize"),
    ],
)
def test_bad_arguments_of_a_search(cli, elsewhere, override, said):
    status, _, err = cli(*SEARCH, override)
    assert (status, list(elsewhere.iterdir())) == (2, [])
    assert said in err and err.count("\n") == 1

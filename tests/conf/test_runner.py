"""A run directory is written once, shown again, refused to other experiments, and set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.config.secrets import without_secrets
from seqrun.records.results import Results
from seqrun.runs import runner

SHORT = ("algo=naive", "benchmark.num_tasks=2", "benchmark.samples_per_task=40", "callbacks=[]")


def record(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


@pytest.fixture
def config(jobs_of) -> dict:
    return jobs_of(*SHORT, "logger=[local]", "logger.local.figures=false")[0].config


@pytest.mark.ci
def test_a_run_leaves_the_documented_files(config, elsewhere):
    results = runner.run_experiment(config, elsewhere / "run")
    kept = record(elsewhere / "run")
    assert kept["status"] == "completed" == results.status
    assert kept["config_hash"] == results.config_hash
    assert kept["name"] == {
        "algo": "naive",
        "benchmark": "rotated_digits",
        "backbone": "mlp",
        "backend": "torch",
    }
    assert [run["seed"] for run in kept["runs"]] == [0]
    assert yaml.safe_load((elsewhere / "run" / "config.yaml").read_text(encoding="utf-8")) == config
    assert (elsewhere / "run" / "accuracy_matrix.csv").exists()


def test_several_seeds_have_directories_of_their_own(config, elsewhere):
    results = runner.run_experiment({**config, "seed": [4, 2]}, elsewhere)
    assert [run["seed"] for run in record(elsewhere)["runs"]] == [4, 2]
    assert (elsewhere / "seeds" / "2" / "metrics.jsonl").parent.is_dir()
    assert (elsewhere / "seeds" / "4" / "accuracy_matrix.csv").exists()
    alone = runner.run_experiment({**config, "seed": 2}, elsewhere.parent / "alone")
    assert (alone.runs[0].accuracy_matrix == results.runs[1].accuracy_matrix)[1:].any()
    assert alone.runs[0].metrics == results.runs[1].metrics


@pytest.mark.ci
def test_completed_run_is_shown_again(config, elsewhere, capsys, monkeypatch):
    runner.run_experiment(config, elsewhere)
    before = (elsewhere / "results.json").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(runner, "build", None)  # nothing may be built, let alone trained
    results = runner.run_experiment(config, elsewhere)
    assert results.status == "completed"
    assert "average accuracy" in capsys.readouterr().out
    assert (elsewhere / "results.json").read_bytes() == before


@pytest.mark.ci
def test_other_experiment_is_refused_naming_the_keys(config, elsewhere):
    runner.run_experiment(config, elsewhere)
    before = (elsewhere / "results.json").read_bytes()
    other = {**config, "optimizer": {**config["optimizer"], "lr": 0.5}, "seed": 1}
    with pytest.raises(ConfigError) as error:
        runner.run_experiment(other, elsewhere)
    assert "optimizer.lr: 0.05 -> 0.5" in str(error.value)
    assert "seed: 0 -> 1" in str(error.value)
    assert "resume=never" in str(error.value)
    assert (elsewhere / "results.json").read_bytes() == before


@pytest.mark.ci
def test_preflight_refuses_before_hydra_overwrites_its_record(config, elsewhere, capsys):
    runner.run_experiment(config, elsewhere / "run")
    argv = [*SHORT, "optimizer.lr=0.5", "hydra.run.dir=run"]
    assert preflight.main(argv, CONF) == preflight.BAD_INPUT
    assert "optimizer.lr: 0.05 -> 0.5" in capsys.readouterr().err


@pytest.mark.ci
def test_resume_never_sets_the_old_directory_aside(config, elsewhere):
    run = elsewhere / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text("old", encoding="utf-8")
    for _ in range(3):
        runner.run_experiment({**config, "resume": "never"}, run)
    assert sorted(p.name for p in elsewhere.iterdir()) == ["run", "run.1", "run.2"]
    assert {record(p)["status"] for p in elsewhere.iterdir()} == {"completed"}
    assert (run / ".hydra" / "config.yaml").read_text(encoding="utf-8") == "old"


@pytest.mark.ci
def test_an_unfinished_run_starts_again(config, elsewhere):
    results = runner.run_experiment(config, elsewhere)
    expected = (elsewhere / "accuracy_matrix.csv").read_bytes()
    results.finish("interrupted")
    (elsewhere / "metrics.jsonl").write_text("half a li", encoding="utf-8")
    (elsewhere / "notes.txt").write_text("mine", encoding="utf-8")
    runner.run_experiment(config, elsewhere)
    assert record(elsewhere)["status"] == "completed"
    assert (elsewhere / "accuracy_matrix.csv").read_bytes() == expected
    assert (elsewhere / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.ci
def test_failure_is_recorded(config, elsewhere, mypkg):
    failing = {
        **config,
        "allow_targets": ["mypkg"],
        "callbacks": {"mine": {"_target_": "mypkg.Fails"}},
    }
    with pytest.raises(RuntimeError, match="the disk is full"):
        runner.run_experiment(failing, elsewhere)
    kept = record(elsewhere)
    assert kept["status"] == "failed"
    assert kept["error"]["message"] == "the disk is full"
    assert Results.read(elsewhere).status == "failed"


def test_secrets_are_not_written(config, elsewhere):
    logger = {**config["logger"]["local"]}
    assert "***" not in str(without_secrets(config))
    hidden = without_secrets({"logger": {"x": {**logger, "api_key": "k3y"}}})
    assert hidden["logger"]["x"] == {**logger, "api_key": "***"}
    assert without_secrets([{"a": [{"token": "k3y"}]}]) == [{"a": [{"token": "***"}]}]


@pytest.mark.ci
def test_a_secret_is_in_no_file_of_a_run(run_py, elsewhere, mypkg):
    """Not in a logger's configuration, in config.yaml or in Hydra's own files."""
    (mypkg / "keyed.py").write_text(
        "import json\n"
        "from seqrun.loggers import BaseLogger\n"
        "class Keyed(BaseLogger):\n"
        "    def __init__(self, api_key, options):\n"
        "        assert api_key == options[0]['token'] == 'TOPSECRET'\n"
        "    def open(self, run):\n"
        "        (run.directory / 'told.json').write_text(json.dumps(run.config))\n",
        encoding="utf-8",
    )
    key = "${oc.env:SEQRUN_KEY}"
    mine = ["allow_targets=[keyed]", "logger=[local]", "+logger.my._target_=keyed.Keyed"]
    mine += [f"+logger.my.api_key={key}", f"+logger.my.options=[{{token:{key}}}, {key}]"]
    done = run_py(*SHORT, *mine, "hydra.run.dir=run", PYTHONPATH=str(mypkg), SEQRUN_KEY="TOPSECRET")
    assert done.returncode == 0, done.stderr
    told = json.loads((elsewhere / "run" / "told.json").read_text(encoding="utf-8"))
    assert told["logger"]["my"]["api_key"] == told["logger"]["my"]["options"][0]["token"] == "***"
    files = [path for path in (elsewhere / "run").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"TOPSECRET" in path.read_bytes()]
    assert "TOPSECRET" not in done.stdout + done.stderr


@pytest.mark.ci
def test_a_failed_process_reports_it_once(run_py, elsewhere, mypkg):
    mine = ("allow_targets=[mypkg]", "+callbacks.mine._target_=mypkg.Fails", "hydra.run.dir=run")
    done = run_py(*SHORT, *mine, "logger=[]", PYTHONPATH=str(mypkg))
    assert done.returncode == 1
    assert done.stderr.startswith("error: RuntimeError: the disk is full")
    assert done.stderr.count("\n") == 1
    assert record(elsewhere / "run")["status"] == "failed"


@pytest.mark.ci
def test_a_terminated_process_records_it(run_py, elsewhere, mypkg):
    mine = ("allow_targets=[mypkg]", "+callbacks.mine._target_=mypkg.Terminates")
    done = run_py(*SHORT, *mine, "logger=[]", "hydra.run.dir=run", PYTHONPATH=str(mypkg))
    assert done.returncode == 143
    assert "Traceback" not in done.stderr
    assert record(elsewhere / "run")["status"] == "interrupted"


@pytest.mark.ci
def test_multirun_goes_on_after_a_failed_job(run_py, elsewhere, mypkg):
    mine = ("allow_targets=[mypkg]", "+callbacks.mine._target_=mypkg.FailsAtSeed0")
    done = run_py("-m", *SHORT, *mine, "logger=[]", "seed=0,1", PYTHONPATH=str(mypkg))
    assert done.returncode == 1
    assert "seed=0: failed: RuntimeError: the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    jobs = [p.parent for p in (elsewhere / "sweep_runs" / "grid").glob("*/results.json")]
    assert {p.name for p in jobs} == {record(p)["config_hash"] for p in jobs}
    statuses = {tuple(record(p)["seeds"]): record(p)["status"] for p in jobs}
    assert statuses == {(0,): "failed", (1,): "completed"}

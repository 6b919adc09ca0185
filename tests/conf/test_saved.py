"""Groups of whole experiments: experiment, debug, local; and keys for people and searches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from seqrun.checks import ConfigError
from seqrun.config.build import build
from seqrun.evaluation.metrics import METRICS, compute_metrics

OWN = """\
# @package _global_
defaults:
  - override /algo: der
  - override /logger: tensorboard
seed: 7
"""


def write(elsewhere: Path, name: str, text: str) -> None:
    path = elsewhere / "own" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_an_experiment_of_ones_own(jobs_of, elsewhere):
    """It yields to what is typed behind it, and is the experiment that it stands for."""
    write(elsewhere, "experiment/mine.yaml", OWN)
    (job,) = jobs_of("--config-dir", "own", "experiment=mine", "optimizer.lr=0.5")
    assert (job.config["seed"], job.config["optimizer"]["lr"]) == (7, 0.5)
    assert list(job.config["logger"]) == ["console", "local", "tensorboard"]
    (same,) = jobs_of("algo=der", "seed=7", "optimizer.lr=0.5")
    assert job.hash == same.hash
    jobs = jobs_of("--config-dir", "own", "-m", "experiment=mine,example")
    assert [job.config["algo"]["_target_"].split(".")[2] for job in jobs] == ["der", "er"]


def test_the_message_says_where_files_go(jobs_of):
    message = (
        r"experiment=mine: must be one of example; put yours into experiment/mine.yaml, .*-dir"
    )
    with pytest.raises(ConfigError, match=message):
        jobs_of("experiment=mine")
    with pytest.raises(ConfigError, match="debug=bach: must be one of batch.*did you mean batch?"):
        jobs_of("debug=bach")


def test_what_holds_on_this_machine(jobs_of, elsewhere):
    write(elsewhere, "local/default.yaml", "# @package _global_\ndata_dir: /mine\nnum_threads: 1\n")
    write(elsewhere, "experiment/mine.yaml", OWN + "num_threads: 2\n")
    assert jobs_of()[0].config["num_threads"] is None
    assert jobs_of("--config-dir", "own")[0].config["data_dir"] == "/mine"
    both = jobs_of("--config-dir", "own", "experiment=mine")[0].config
    assert (both["data_dir"], both["num_threads"]) == ("/mine", 2)


def test_one_batch(jobs_of, elsewhere):
    (job,) = jobs_of("debug=batch", "algo=er", "logger=null", "callbacks=null")
    build(job.experiment, 0).fit()
    assert job.directory.parent == elsewhere / "runs" / "debug"
    assert job.config["training"]["steps_per_task"] == 1
    assert job.config["resume"] == "never"


def test_overfitting(jobs_of):
    (job,) = jobs_of("debug=overfit", "algo=naive", "logger=null", "callbacks=null")
    assert build(job.experiment, 0).fit().train_loss["final"] < 0.05


def test_a_profile(jobs_of):
    (job,) = jobs_of("debug=profile", "callbacks.profile.num_chunks=2")
    assert list(job.config["callbacks"]) == ["metrics", "progress", "checkpoint", "profile"]


def test_keys_for_people_change_no_hash(jobs_of):
    free = [
        "tags=[mine,first]",
        "notes='what I think: of it'",
        "optimized_metric=learning_accuracy",
    ]
    (job,), (plain,) = jobs_of(*free), jobs_of()
    assert job.hash == plain.hash
    assert job.config["tags"] == ["mine", "first"]
    with pytest.raises(ConfigError, match="optimized_metric='accuracy': must be one of average_ac"):
        jobs_of("optimized_metric=accuracy")
    with pytest.raises(ConfigError, match="tags"):
        jobs_of("tags=mine")


def test_the_metrics_have_these_names():
    assert tuple(compute_metrics(np.zeros((3, 2)))) == METRICS


@pytest.mark.ci
def test_a_search_optimises_the_metric(run_py, elsewhere):
    small = ("algo=naive", "benchmark.num_tasks=2", "benchmark.samples_per_task=40", "seed=0,1")
    done = run_py("-m", *small, "optimized_metric=average_forgetting", "logger=null")
    assert done.returncode == 0, done.stderr
    shown = {}
    for path in Path("sweep_runs/grid").glob("*/results.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        shown[path.parent.name] = record["summary"]["average_forgetting"]["mean"]
    for name, value in shown.items():
        (line,) = [each for each in done.stdout.splitlines() if each.endswith(name)]
        assert f"{100 * value:.1f} %" in line

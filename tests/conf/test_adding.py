"""One option of callbacks or loggers adds to the defaults; a list says exactly what."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqrun.checks import ConfigError
from seqrun.config.compose import default_lists, with_defaults

LOGGERS, CALLBACKS = ["console", "local"], ["metrics", "progress", "checkpoint"]
WITH_TIMING = [*CALLBACKS, "timing"]


def test_the_defaults_are_those_of_the_configuration():
    assert default_lists() == {"callbacks": CALLBACKS, "logger": LOGGERS}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("logger=wandb", "logger=[console,local,wandb]"),
        ("logger=console", "logger=[console,local]"),
        ("logger=wandb,comet", "logger=[console,local,wandb],[console,local,comet]"),
        ("callbacks=timing", "callbacks=[metrics,progress,checkpoint,timing]"),
        ("callbacks=mine/early-stopping", f"callbacks=[{','.join(CALLBACKS)},mine/early-stopping]"),
        ("logger=null", "logger=[]"),
        ("~logger", "logger=[]"),
    ],
)
def test_what_a_single_name_means(given: str, meant: str):
    assert with_defaults([given]) == [meant]


@pytest.mark.parametrize(
    "line",
    ["logger=[wandb]", "logger=[]", "algo=er", "logger.local.figures=false", "-m", "seed=0,1"],
)
def test_what_stays_as_it_is(line: str):
    assert with_defaults([line]) == [line]


@pytest.mark.parametrize(
    ("choice", "loggers", "callbacks"),
    [
        ("/logger: tensorboard", [*LOGGERS, "tensorboard"], CALLBACKS),
        ("/logger: [tensorboard]", ["tensorboard"], CALLBACKS),
        ("/callbacks: timing", LOGGERS, WITH_TIMING),
        ("/callbacks: [timing]", LOGGERS, ["timing"]),
        ("/callbacks: []", LOGGERS, []),
        ("/callbacks: null", LOGGERS, []),
    ],
)
def test_a_file_says_it_in_the_same_way(
    jobs_of, tmp_path: Path, choice: str, loggers: list[str], callbacks: list[str]
):
    (tmp_path / "own" / "sweeps").mkdir(parents=True)
    text = f"# @package _global_\ndefaults:\n  - override {choice}\n"
    text += "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"
    (tmp_path / "own" / "sweeps" / "mine.yaml").write_text(text, encoding="utf-8")
    for job in jobs_of("--config-dir", str(tmp_path / "own"), "sweeps=mine", "algo=naive"):
        assert list(job.config["logger"]) == loggers
        assert list(job.config["callbacks"]) == callbacks


def test_a_grid_of_options(jobs_of):
    """Each has the defaults."""
    jobs = jobs_of("-m", *with_defaults(["callbacks=timing,early_stopping"]), "algo=naive", *HELD)
    assert [list(job.config["callbacks"]) for job in jobs] == [
        WITH_TIMING,
        [*CALLBACKS, "early_stopping"],
    ]


def test_a_grid_of_loggers(jobs_of):
    """They are one experiment: twice in one directory makes no sense, in two it does."""
    grid = ("-m", "algo=naive", "logger=tensorboard,console")
    with pytest.raises(ConfigError, match=r"one run with several loggers is logger=\[a,b\]"):
        jobs_of(*grid)
    jobs = jobs_of(*grid, "hydra.sweep.subdir=${hydra.job.num}")
    assert [list(job.config["logger"]) for job in jobs] == [[*LOGGERS, "tensorboard"], LOGGERS]


def test_none_at_all(jobs_of):
    (job,) = jobs_of("logger=null", "~callbacks")
    assert job.config["logger"] == job.config["callbacks"] == {}


HELD = ["benchmark.validation_fraction=0.1"]


@pytest.mark.ci
def test_as_a_user(run_py):
    """The console speaks, and the keys of the defaults may be set."""
    small = ["algo=naive", "benchmark.num_tasks=1", "benchmark.samples_per_task=20"]
    done = run_py(*small, "logger=tensorboard", "logger.local.figures=false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("naive on rotated_digits")
    (directory,) = Path("runs").iterdir()
    assert (directory / "metrics.jsonl").is_file() and (directory / "tensorboard").is_dir()
    shown = run_py("logger=tensorboard", "--cfg", "job").stdout
    assert "ConsoleLogger" in shown and "TensorBoardLogger" in shown
    listed = run_py(*small, "logger=[local]", "resume=never").stdout
    assert listed.startswith("average accuracy") and listed.count("\n") == 1
    assert run_py(*small, "logger=null", "resume=never").stdout == ""

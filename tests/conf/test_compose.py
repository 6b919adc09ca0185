"""Every option of every group composes and builds, on every backend that has it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import yaml
from benchmarks.generators import image_tree, npz_arrays, write_tree

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.callbacks import CheckpointCallback, MetricCallback, TqdmCallback
from seqrun.cli.listing import CONF, GROUPS, options
from seqrun.config import build as experiment
from seqrun.config.targets import find_class
from seqrun.loggers.console import ConsoleLogger
from seqrun.plan import STREAMS

SINGLE = ("algo", "benchmark", "backbone", "optimizer")
MULTIPLE = ("callbacks", "logger")
CHOICES = [
    (group, option.name, backend)
    for group in (*SINGLE, *MULTIPLE)
    for option in options(CONF, group)
    for backend in option.backends
]


@pytest.fixture(autouse=True)
def _data_are_there(monkeypatch):
    """Compose even MNIST without its data; the search for data is tested elsewhere."""
    monkeypatch.setattr(experiment, "check_data", lambda *_: None)


@pytest.fixture
def own_data(tmp_path) -> dict[str, list[str]]:
    """Return option -> overrides that the benchmarks of a user's own data need."""
    np.savez(tmp_path / "mine.npz", **npz_arrays(classes=5))
    paths = {
        "split_image_folder": write_tree(tmp_path / "mine", image_tree(tuple("abcde"))),
        "split_npz": tmp_path / "mine.npz",
    }
    few = "benchmark.num_tasks=1"
    return {option: [f"benchmark.path={path}", few] for option, path in paths.items()}


@pytest.mark.ci
@pytest.mark.parametrize(("group", "option", "backend"), CHOICES)
def test_option_builds_with_every_key_written_out(jobs_of, own_data, group, option, backend):
    stream = [] if group != "algo" or option != "icarl" else ["benchmark=split_digits"]
    stream += ["benchmark.scenario=class"] * len(stream)  # the only scenario of iCaRL
    stream += own_data.get(option, [])
    if option == "early_stopping":
        stream.append("benchmark.validation_fraction=0.1")
    (job,) = jobs_of(f"{group}={option}", f"backend={backend}", *stream)
    algorithm = experiment.build(job.config, seed=0)
    assert isinstance(algorithm, BaseAlgorithm)
    assert algorithm.backend == algorithm.backbone.backend == algorithm.optimizer.backend == backend
    node = job.config[group] if group in SINGLE else job.config[group][option]
    given = set(inspect.signature(BaseAlgorithm).parameters) if group == "algo" else set()
    keys = set(inspect.signature(find_class(group, node["_target_"], object)).parameters) - given
    # data_dir is no key of a benchmark whose data are embedded
    assert keys - {"data_dir"} <= set(node), "an override of a key left out would need a '+'"


def test_default_experiment(jobs_of):
    (job,) = jobs_of()
    algorithm = experiment.build(job.config, seed=3)
    names = {"algo": "ewc", "benchmark": "rotated_digits", "backbone": "mlp", "backend": "torch"}
    assert algorithm.names == names
    kinds = [MetricCallback, TqdmCallback, CheckpointCallback]
    assert [type(c) for c in algorithm.callbacks] == kinds
    assert isinstance(algorithm.loggers[0], ConsoleLogger)
    assert algorithm.seed == 3
    assert job.directory.parent.name == "runs"
    assert job.directory.name == f"ewc-rotated_digits-{job.hash}"


def test_conf_repeats_the_defaults_of_the_classes():
    config = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    assert TrainingOptions(**config["training"]) == TrainingOptions()
    assert config["streams"] == dict.fromkeys(STREAMS)


def test_lists_of_callbacks_and_loggers(jobs_of):
    (job,) = jobs_of("callbacks=[]", "logger=[local]", "logger.local.figures=false")
    algorithm = experiment.build(job.config, seed=0)
    assert algorithm.callbacks == []
    (logger,) = algorithm.loggers
    assert logger.figures is False


@pytest.mark.ci
def test_a_relative_data_dir_is_below_the_working_directory(jobs_of, elsewhere, monkeypatch):
    assert jobs_of()[0].config["data_dir"] == str(elsewhere / "data")
    assert jobs_of("data_dir=x")[0].config["data_dir"] == str(elsewhere / "x")
    monkeypatch.setenv("SEQRUN_DATA", "/somewhere")
    assert jobs_of()[0].config["data_dir"] == "/somewhere"


def test_epochs_may_be_one_per_task(jobs_of):
    (job,) = jobs_of("training.epochs_per_task=[3,1,1,1,1]")
    assert experiment.build(job.config, seed=0).training.epochs(1) == 3


@pytest.mark.ci
def test_grid_is_expanded(jobs_of):
    jobs = jobs_of("-m", "algo=naive", "seed=0,1", "optimizer.lr=choice(0.1,0.01)", "algo=naive")
    assert [(j.config["seed"], j.config["optimizer"]["lr"]) for j in jobs] == [
        (0, 0.1),
        (0, 0.01),
        (1, 0.1),
        (1, 0.01),
    ]
    assert len({j.hash for j in jobs}) == 4


@pytest.mark.ci
def test_sweep_file_needs_no_flag_and_yields_to_the_command_line(jobs_of):
    assert [j.config["seed"] for j in jobs_of("sweeps=seeds")] == [0, 1, 2, 3, 4]
    assert [j.config["seed"] for j in jobs_of("-m", "sweeps=seeds", "seed=7,8")] == [7, 8]


@pytest.mark.ci
def test_search_is_checked_at_every_value_and_both_ends(jobs_of):
    jobs = jobs_of(
        "-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0.001,0.1)", "seed=choice(0,1,2)"
    )
    points = {(j.config["optimizer"]["lr"], j.config["seed"]) for j in jobs}
    assert points == {(0.001, 0), (0.1, 0), (0.001, 1), (0.001, 2)}


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_has_a_description(group):
    for option in options(CONF, group):
        assert option.description.strip(), option.name


def test_a_class_of_an_allowed_package_is_accepted(jobs_of, mypkg):
    (job,) = jobs_of("allow_targets=[mypkg]", "+callbacks.mine._target_=mypkg.Fails")
    algorithm = experiment.build(job.config, seed=0)
    assert type(algorithm.callbacks[-1]).__name__ == "Fails"

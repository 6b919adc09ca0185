"""Any configuration is either refused with a message before training, or trains to its end."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability.small_runs import config_of

from seqrun.checks import ConfigError
from seqrun.config import build as experiment
from seqrun.runs import runner
from seqrun.training.divergence import TrainingDiverged

ALGORITHMS = ("naive", "ewc", "er", "agem", "derpp", "si", "joint")
BENCHMARKS = ("rotated_digits", "permuted_digits", "split_digits")
VALUES: dict[str, st.SearchStrategy] = {
    "benchmark.num_tasks": st.sampled_from([1, 2, 3, 5, 6]),
    "benchmark.samples_per_task": st.sampled_from([1, 2, 7, 40, 10**6, None]),
    "benchmark.batch_size": st.sampled_from([1, 3, 10, 39, 1000]),
    "benchmark.eval_batch_size": st.sampled_from([1000, 17]),
    "benchmark.scenario": st.sampled_from(["task", "domain", "class"]),
    "benchmark.validation_fraction": st.sampled_from([0.0, 0.001, 0.5, 0.99]),
    "benchmark.crop_padding": st.sampled_from([0, 1, 9]),
    "backbone.width": st.sampled_from([1, 8]),
    "backbone.dropout": st.sampled_from([0.0, 0.5, 0.999]),
    "backbone.batch_norm": st.booleans(),
    "optimizer.lr": st.sampled_from([1e-30, 0.05, 1e30]),
    "optimizer.momentum": st.sampled_from([0.0, 0.9, 1.0]),
    "training.epochs_per_task": st.sampled_from([1, 2, [1, 2], [2]]),
    "training.lr_decay": st.sampled_from([1.0, 0.5, 0.0]),
    "training.grad_clip": st.sampled_from([None, 1e-20, 1.0]),
    "training.reinit_optimizer": st.sampled_from(["task", "epoch", "never"]),
    "training.evaluate_every": st.sampled_from(["task", "epoch"]),
    "training.evaluate_on": st.sampled_from(["seen_and_next", "seen", "all"]),
    "training.chunk_steps": st.sampled_from([None, 1, 3, 10**9]),
    "seed": st.sampled_from([0, 2**63, [0, 5], [1, 1]]),
    "num_threads": st.sampled_from([None, 1, 0]),
}


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an algorithm, a benchmark and some keys with usual and unusual values."""
    algo, benchmark = draw(st.sampled_from(ALGORITHMS)), draw(st.sampled_from(BENCHMARKS))
    config = copy.deepcopy(config_of(f"algo={algo}", f"benchmark={benchmark}"))
    config["training"]["chunk_steps"] = None
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=5, unique=True))
    if "memory_size" in config["algo"]:
        config["algo"]["memory_size"] = draw(st.sampled_from([1, 13, 200]))
    for key in keys:
        node: Any = config
        *path, last = key.split(".")
        for step in path:
            node = node[step]
        node[last] = draw(VALUES[key])
    return config


def try_out(config: dict[str, Any]) -> None:
    """Check and run a configuration: it must complete, or raise an error that names the cause."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            experiment.check(config)
            results = runner.run_experiment(config, Path(directory) / "run")
        except (ConfigError, TrainingDiverged) as error:
            assert "\n" not in str(error)
            return
        assert results.status == "completed"
        for run in results.runs:
            assert run.completed and run.metrics["average_accuracy"] is not None


QUIET: dict[str, Any] = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow],
}


@pytest.mark.ci
@settings(max_examples=10, **QUIET)
@given(experiments())
def test_a_few(config: dict[str, Any]):
    """The same ten configurations every time."""
    try_out(config)


@pytest.mark.ci
@pytest.mark.full
@settings(max_examples=400, **QUIET)
@given(experiments())
def test_many(config: dict[str, Any]):
    """The same four hundred configurations every time."""
    try_out(config)

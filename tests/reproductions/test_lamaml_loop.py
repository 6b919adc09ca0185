"""La-MAML's row compared with a loop that does not use seqrun, on the same tasks of MNIST."""

from __future__ import annotations

from pathlib import Path

import pytest
from reproductions import lamaml_loop

from seqrun.benchmarks.source import data_root
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.runs import runner

NUM_TASKS, SEEDS = 4, (0, 1)
POINTS = 0.015
"""Largest difference of means over two seeds, between runs that share only the tasks."""


def mean_accuracy(directory: Path, *overrides: str) -> float:
    """Return seqrun's mean accuracy over the seeds."""
    short = [f"benchmark.num_tasks={NUM_TASKS}", f"seed={list(SEEDS)}", "logger=[]"]
    command = ["reproductions=lamaml2020/rotated_mnist_lamaml", "backend=jax", *short, *overrides]
    (job,) = preflight.check(command, CONF)
    results = runner.run_experiment(job.config, directory, overrides=command)
    return results.summary["average_accuracy"]["mean"]


@pytest.mark.full
def test_the_loop_ends_where_seqrun_does(tmp_path: Path):
    """Runs with another learning rate differ by more, so the bound is not too loose."""
    if not (data_root(None) / "MNIST" / "raw").is_dir():
        pytest.skip("needs MNIST (set SEQRUN_DATA)")
    by_loop = sum(lamaml_loop.accuracy(seed, NUM_TASKS) for seed in SEEDS) / len(SEEDS)
    assert mean_accuracy(tmp_path / "row") == pytest.approx(by_loop, abs=POINTS)
    other = mean_accuracy(tmp_path / "other", "algo.learn_lr=false", "algo.alpha_init=0.02")
    assert other != pytest.approx(by_loop, abs=POINTS)

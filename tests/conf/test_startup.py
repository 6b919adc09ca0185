"""A command imports only what it uses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from seqrun.cli.listing import CONF

ROOT = CONF.parent

HEAVY = ("torch", "jax", "torchvision", "matplotlib", "wandb", "comet_ml", "optuna", "sklearn")


def imported(elsewhere, *argv: str) -> tuple[set[str], str]:
    """Return the packages that run.py imports for a command line, and its output."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), *argv],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}, done.stdout


def test_help(elsewhere):
    packages, out = imported(elsewhere, "--help")
    assert "seqrun" in packages
    assert not packages & {*HEAVY, "numpy", "hydra"}
    for text in ("ewc", "rotated_mnist", "seeds", "training.epochs_per_task", "Examples"):
        assert text in out
    assert not list(elsewhere.iterdir())


@pytest.mark.ci
def test_composing_needs_no_framework(elsewhere):
    packages, out = imported(elsewhere, "--cfg", "job")
    assert not packages & set(HEAVY)
    assert "ewc_lambda" in out


@pytest.mark.ci
@pytest.mark.parametrize(("backend", "other"), [("torch", "jax"), ("jax", "torch")])
def test_a_run_imports_its_own_framework_alone(elsewhere, backend, other):
    short = ("algo=naive", "benchmark.num_tasks=1", "benchmark.samples_per_task=20")
    packages, _ = imported(elsewhere, f"backend={backend}", *short, "logger=[console]")
    assert backend in packages
    assert not packages & {other, "torchvision", "matplotlib", "wandb", "comet_ml", "optuna"}

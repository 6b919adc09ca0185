"""Relative paths mean the directory of the command; Ctrl-C ends it with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

RUN = Path(__file__).parents[2] / "run.py"
SMALL = ("algo=naive", "benchmark=split_npz", "benchmark.path=d.npz", "benchmark.num_tasks=2")


@pytest.fixture
def data(elsewhere) -> Path:
    """Write d.npz into the working directory."""
    x, y = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 4
    np.savez("d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return elsewhere


@pytest.mark.ci
@pytest.mark.parametrize("multirun", [(), ("-m",)], ids=["run", "multirun"])
def test_relative_paths_with_chdir(data, run_py, multirun):
    options = ("hydra.job.chdir=true", "logger=local", "logger.local.directory=here")
    done = run_py(*multirun, *SMALL, *options)
    assert done.returncode == 0, done.stderr
    assert (data / "here" / "metrics.jsonl").exists()
    folder = data / ("sweep_runs" if multirun else "runs")
    assert not list(folder.rglob("here"))


def interrupted(argv: tuple[str, ...], ready: str | None, seconds: float) -> tuple[int, str, str]:
    """Start a command, send SIGINT once it says `ready`; return status and output.

    Args:
        argv: the command's words.
        ready: the beginning of a line on stdout; None = do not wait for one.
        seconds: time to wait after it.
    """
    process = subprocess.Popen(
        [sys.executable, str(RUN), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    first = ""
    while ready and not first.startswith(ready):
        first = process.stdout.readline()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.ci
@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_ctrl_c_before_the_run(elsewhere, seconds):
    status, out, err = interrupted(("algo=naive",), None, seconds)
    assert (status, out, err) == (130, "", "interrupted before anything was run\n")


@pytest.mark.ci
def test_ctrl_c_in_a_run(elsewhere):
    long = ("algo=naive", "training.epochs_per_task=100000", "training.compile=never")
    status, out, err = interrupted(long, "naive on", 1.0)
    assert status == 130 and "interrupted" not in out
    assert err.startswith("interrupted: the same command continues (in ") and err.count("\n") == 1

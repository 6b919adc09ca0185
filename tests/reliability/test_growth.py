"""Memory use stays constant over many tasks and runs.

`python tests/reliability/test_growth.py ALGO BACKEND TASKS` prints the slope.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BOUND = 8_000
"""Largest allowed growth in bytes per task; the images of one task have 64 x 200 bytes."""


class Resident:
    """Record the resident memory of the process after each task."""

    def __init__(self) -> None:
        self.num_bytes: list[int] = []

    def note(self) -> None:
        """Record the resident memory, after returning free memory to the system."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        self.num_bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))


def slope(algo: str, backend: str, num_tasks: int) -> float:
    """Return the growth in bytes per task over the second half of the tasks."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from experiments import build

    from seqrun.callbacks import BaseCallback

    resident = Resident()

    class Watch(BaseCallback):
        def on_after_validation(self, run: Any) -> None:
            resident.note()

    stream = {"num_tasks": num_tasks, "samples_per_task": 200}
    training = {"epochs_per_task": 1, "evaluate_on": "seen_and_next"}
    gentle = (
        {"ewc_lambda": 1.0} if algo == "ewc" else {}
    )  # a larger coefficient diverges with 200 tasks
    build(
        algo, backend, benchmark="permuted_digits", stream=stream, training=training,
        callbacks=[Watch()], **gentle,
    ).fit()  # fmt: skip
    half = resident.num_bytes[len(resident.num_bytes) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


def measured(algo: str, backend: str, num_tasks: int) -> float:
    """Return the slope, measured in another process."""
    command = [sys.executable, __file__, algo, backend, str(num_tasks)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[0])


@pytest.mark.ci
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_forty_tasks():
    """Replay needs the most memory."""
    assert measured("er", "torch", 40) < BOUND


@pytest.mark.ci
@pytest.mark.full
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("algo", ["naive", "ewc", "er"])
def test_two_hundred_tasks(algo: str, backend: str):
    """Without state, with importances and with a memory."""
    assert measured(algo, backend, 200) < BOUND


@pytest.mark.ci
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_run_is_freed_before_the_next(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """For seeds of one run and successive runs in one process, without the garbage collector."""
    from reliability.small_runs import config_of

    from seqrun.runs import runner

    runs: list[weakref.ref[Any]] = []
    left: list[int] = []
    build = runner._build_seed

    def noted(*args: Any) -> Any:
        left.append(sum(run() is not None for run in runs))
        algorithm = build(*args)
        runs.append(weakref.ref(algorithm))
        return algorithm

    monkeypatch.setattr(runner, "_build_seed", noted)
    gc.disable()
    try:
        for place in ("one", "other"):
            config = config_of("algo=er", "seed=[0,1]", f"backend={backend}")
            runner.run_experiment(config, tmp_path / place)
    finally:
        gc.enable()
    assert left == [0, 0, 0, 0]


@pytest.mark.ci
def test_a_run_that_could_not_continue_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is freed before another run tries the previous checkpoint."""
    from reliability.small_runs import config_of

    from seqrun.records import checkpoint
    from seqrun.runs import runner
    from seqrun.training.trainer import Trainer

    runs: list[weakref.ref[Any]] = []
    left: list[int] = []
    build, fit = runner._build_seed, Trainer.fit

    def noted(*args: Any) -> Any:
        left.append(sum(run() is not None for run in runs))
        algorithm = build(*args)
        runs.append(weakref.ref(algorithm))
        return algorithm

    def refused(self: Any, resume_from: Any = None) -> Any:
        if len(runs) == 1:
            raise checkpoint.CheckpointError("checkpoint: not this one")
        return fit(self)

    monkeypatch.setattr(runner, "_build_seed", noted)
    monkeypatch.setattr(Trainer, "fit", refused)
    found = SimpleNamespace(path="a checkpoint")
    monkeypatch.setattr(checkpoint, "latest", lambda *_, **__: (found, []))
    for name in ("mark_damaged", "set_aside_after"):
        monkeypatch.setattr(checkpoint, name, lambda *_: None)
    gc.disable()
    try:
        runner.run_experiment(config_of("algo=er"), tmp_path / "run")
    finally:
        gc.enable()
    assert left == [0, 0]


if __name__ == "__main__":
    algo, backend, num_tasks = sys.argv[1:]
    print(f"{slope(algo, backend, int(num_tasks)):.0f} bytes per task")

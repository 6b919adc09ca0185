"""A grid whose process group is killed, however often, ends like one that was not killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sweeps.conftest import MINE, TINY

LONGER = (
    *TINY, "algo=er", "training.epochs_per_task=6", "training.chunk_steps=2",
    "callbacks.checkpoint.every_steps=4",
)  # fmt: skip


def completed(directory: Path) -> int:
    """Return how many runs of a sweep are completed."""
    records = directory.glob("*/results.json")
    return sum('"status": "completed"' in path.read_text(encoding="utf-8") for path in records)


def kill_when(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Kill a process group as soon as a condition holds."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def products(directory: Path) -> dict[str, bytes]:
    """Return the results of a sweep without times."""
    paths = [*directory.glob("*/accuracy_matrix.csv"), directory / "summary.csv"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def assert_survives(start, cli, kills: int, *argv: str) -> None:
    """Kill a multirun after a random number of jobs, restart it, and compare the results."""
    status, out, _ = cli(*argv, "hydra.sweep.dir=whole")
    assert status == 0
    total = int(out.splitlines()[-1].split(" of ")[0])
    expected = products(Path("whole"))
    cut = Path("cut")
    rng = np.random.default_rng(0)
    for count in np.sort(rng.choice(np.arange(1, total - 1), kills, replace=False)):
        process = start(*argv, f"hydra.sweep.dir={cut}")
        kill_when(process, lambda least=count: completed(cut) >= least)
        assert count <= completed(cut) < total
    process = start(*argv, f"hydra.sweep.dir={cut}")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.count("completed before") >= count
    assert out.splitlines()[-1].startswith(f"{total} of {total} jobs completed")
    assert products(cut) == expected


@pytest.mark.ci
def test_a_killed_grid_ends_the_same(start, cli):
    assert_survives(start, cli, 1, "-m", *LONGER, "seed=0,1,2,3", "optimizer.lr=0.05,0.1")


@pytest.mark.ci
@pytest.mark.full
def test_forty_jobs_killed_three_times(start, cli):
    grid = ("seed=range(10)", "optimizer.lr=0.03,0.1", "algo.memory_size=20,40")
    launcher = ("hydra/launcher=local_processes", "hydra.launcher.n_jobs=2")
    assert_survives(start, cli, 3, "-m", *LONGER, *launcher, *grid)


@pytest.mark.ci
@pytest.mark.full
def test_a_killed_worker_loses_no_job(start, cli, mypkg, elsewhere):
    """Another process continues its job; the other workers are not affected."""
    grid = ("-m", *LONGER, *MINE, "seed=0,1,2,3")
    assert cli(*grid, "hydra.sweep.dir=whole")[0] == 0
    (mypkg / "do").write_text("os.kill(os.getpid(), signal.SIGKILL)", encoding="utf-8")
    launcher = ("hydra/launcher=local_processes", "hydra.launcher.n_jobs=2")
    process = start(*grid, *launcher, "hydra.sweep.dir=cut")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "seed=1: its process was killed; it runs again" in err
    assert products(Path("cut")) == products(Path("whole"))
    assert (elsewhere / "cut" / "logs").is_dir()


@pytest.mark.ci
@pytest.mark.full
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_ends_all_processes(start, cli, number, status, group):
    """Whether only the launcher gets it, or all of them do, as from a terminal."""
    longest = (*LONGER, "training.epochs_per_task=4000")
    grid = ("-m", *longest, "seed=0,1,2,3", "hydra/launcher=local_processes")
    process = start(*grid, "hydra.launcher.n_jobs=2", "hydra.sweep.dir=cut")
    kept = Path("cut").glob
    while len({path.parts[1] for path in kept("*/checkpoints/*")}) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err.endswith("interrupted: 0 of 4 jobs are done; the same command continues\n")
    records = [path.read_text(encoding="utf-8") for path in kept("*/results.json")]
    assert len(records) == 2 and all('"status": "interrupted"' in text for text in records)

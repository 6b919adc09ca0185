"""Signals, kills, damaged checkpoints and a second process, as a user would see them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seqrun.checks import ConfigError
from seqrun.records import checkpoint
from seqrun.records.locks import is_locked, locked
from seqrun.runs import directory as run_directory

RUN = Path(__file__).parents[2] / "run.py"
LONG = [
    "algo=er", "backbone.width=32", "training.epochs_per_task=20", "benchmark.num_tasks=2",
    "callbacks.checkpoint.every_steps=50", "logger.local.figures=false", "training.chunk_steps=20",
]  # fmt: skip


def start(directory: Path, *overrides: str) -> subprocess.Popen:
    """Start a run that takes some seconds."""
    command = [sys.executable, str(RUN), *LONG, f"hydra.run.dir={directory}", *overrides]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **quiet)


def finish(directory: Path, *overrides: str) -> str:
    """Run to the end and return the output."""
    out, err = (process := start(directory, *overrides)).communicate(timeout=300)
    assert process.returncode == 0, err
    return out + err


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until something has happened in a run's directory."""
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(directory: Path) -> list[str]:
    """Return the names of a run's checkpoints."""
    folder = directory / checkpoint.FOLDER
    return sorted(p.name for p in folder.iterdir() if p.name[0] != ".") if folder.exists() else []


def status(directory: Path) -> str:
    """Return the status in a run's record."""
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))["status"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run to the end without an interruption."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    finish(directory)
    return directory


def assert_same_end(directory: Path, whole: Path) -> None:
    """Compare matrix, metrics and the last checkpoint's tensors, to the bit."""
    assert status(directory) == "completed"
    for name in ("accuracy_matrix.csv", "metrics.jsonl"):
        assert (directory / name).read_bytes() == (whole / name).read_bytes(), name
    last = checkpoints(whole)[-1]
    assert checkpoints(directory)[-1] == last and last.endswith("-end")
    paths = (d / checkpoint.FOLDER / last / checkpoint.TENSORS_FILE for d in (directory, whole))
    a, b = (path.read_bytes() for path in paths)
    assert a == b


@pytest.mark.ci
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.full),
        pytest.param(signal.SIGINT, marks=pytest.mark.full),
        signal.SIGKILL,
    ],
)
def test_a_signal_costs_no_bit(number: signal.Signals, whole: Path, tmp_path: Path):
    """The run ends soon, reports it and continues to the same result; after SIGKILL, too."""
    process = start(tmp_path / "run")
    wait_for(lambda: bool(checkpoints(tmp_path / "run")), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert status(tmp_path / "run") == "running" and not is_locked(tmp_path / "run")
    else:
        assert process.returncode == 128 + number
        assert status(tmp_path / "run") == "interrupted"
        assert err == f"interrupted: the same command continues (in {tmp_path / 'run'})\n"
    printed = finish(tmp_path / "run")
    assert "continues at step" in printed
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.ci
@pytest.mark.full
def test_a_killed_run_on_jax(tmp_path: Path):
    """Killed at any step, it compiles the same programs and ends with the same bits."""
    finish(tmp_path / "whole", "backend=jax")
    process = start(tmp_path / "run", "backend=jax")
    wait_for(lambda: bool(checkpoints(tmp_path / "run")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    assert "continues at step" in finish(tmp_path / "run", "backend=jax")
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.ci
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(whole: Path, tmp_path: Path):
    """And a warning names the file."""
    process = start(tmp_path / "run")
    wait_for(lambda: len(checkpoints(tmp_path / "run")) == 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    last = tmp_path / "run" / checkpoint.FOLDER / checkpoints(tmp_path / "run")[-1]
    content = (last / checkpoint.TENSORS_FILE).read_bytes()
    (last / checkpoint.TENSORS_FILE).write_bytes(content[:-4] + b"\\0\\0\\0\\0"[:4])
    printed = finish(tmp_path / "run")
    assert f"warning: {last / checkpoint.TENSORS_FILE}: its checksum" in printed
    assert "continues from the one before" in printed
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.ci
def test_one_process_at_a_time(tmp_path: Path):
    """The second reports it and leaves the first alone."""
    process = start(tmp_path / "run")
    wait_for(lambda: is_locked(tmp_path / "run"), process)
    second = start(tmp_path / "run")
    _, err = second.communicate(timeout=100)
    assert second.returncode != 0
    assert f"hydra.run.dir={tmp_path / 'run'}: another process is running in it" in err
    assert err.count("\n") == 1
    process.kill()
    process.communicate()
    with locked(tmp_path / "run"), pytest.raises(ConfigError, match="another process"):
        with locked(tmp_path / "run"):
            pass


@pytest.mark.ci
def test_files_that_no_run_made_are_left_alone(tmp_path: Path):
    """A directory with files of the same names but without a record is refused."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.txt").write_text("thesis", encoding="utf-8")
    process = start(tmp_path)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "has figures but no record of a run" in err
    assert (tmp_path / "figures" / "mine.txt").read_text(encoding="utf-8") == "thesis"
    assert os.listdir(tmp_path) == ["figures"]
    assert run_directory.PRODUCTS[0] == "results.json"

"""Writes that fail, and processes that are killed between writing and renaming a file."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reliability.small_runs import SMALL, config_of, good_checkpoints

from seqrun.config.hash import config_hash
from seqrun.files import TEMPORARY, remove_temporaries
from seqrun.records.results import STATUSES
from seqrun.runs import runner

RUN = Path(__file__).parents[2] / "run.py"
CALLS = ("fsync", "replace", "open")
"""The calls of every write: flush to disk, rename, create."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


class Fault:
    """Let the n-th call and all later ones fail, as with a full disk.

    Args:
        call: what is wrapped.
        fails_from: number of the first call that fails, from 0; None = none.
        number: errno of the failure.
    """

    def __init__(self, call: Callable, fails_from: int | None, number: int) -> None:
        self.call, self.fails_from, self.number, self.count = call, fails_from, number, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Count the call; fail, or make it."""
        self.count += 1
        if self.fails_from is not None and self.count > self.fails_from:
            raise OSError(self.number, os.strerror(self.number))
        return self.call(*args, **options)


def inject(patch: pytest.MonkeyPatch, name: str, fails_from: int | None, number: int) -> Fault:
    """Wrap a function with which a run writes files."""
    if name == "open":
        fault = Fault(open, fails_from, number)
        patch.setattr("seqrun.files.open", fault, raising=False)
        patch.setattr("seqrun.loggers.local.open", fault, raising=False)
    else:
        fault = Fault(getattr(os, name), fails_from, number)
        patch.setattr(os, name, fault)
    return fault


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run to the end without a fault."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    runner.run_experiment(config_of("algo=er"), directory)
    return directory


def assert_intact(directory: Path, hashed: str) -> None:
    """Assert that every file in a run directory is complete."""
    record = directory / "results.json"
    if record.exists():
        assert json.loads(record.read_text(encoding="utf-8"))["status"] in STATUSES
    good_checkpoints(directory, hashed)
    assert not [p for p in directory.rglob(f"*{TEMPORARY}")]


def assert_fault_is_survived(
    directory: Path, whole: Path, call: str, fails_from: int, number: int
) -> None:
    """Assert that a run names the fault, damages nothing, and continues without the fault."""
    config = config_of("algo=er")
    with pytest.MonkeyPatch.context() as patch:
        inject(patch, call, fails_from, number)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            runner.run_experiment(config, directory)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
    assert_intact(directory, config_hash(config))
    runner.run_experiment(config, directory)
    for name in ("accuracy_matrix.csv", "metrics.jsonl"):
        assert (directory / name).read_bytes() == (whole / name).read_bytes(), name
    last = good_checkpoints(whole, config_hash(config))[-1]
    tensors = Path("checkpoints", last, "tensors.safetensors")
    assert (directory / tensors).read_bytes() == (whole / tensors).read_bytes()


def count_calls(directory: Path, call: str) -> int:
    """Return the number of calls in a run that must not fail."""
    with pytest.MonkeyPatch.context() as patch:
        fault = inject(patch, call, None, 0)
        runner.run_experiment(config_of("algo=er"), directory)
    return fault.count - (call == "fsync")  # the last call, for a directory, may fail


@pytest.mark.ci
@pytest.mark.parametrize("call", CALLS)
def test_the_disk_fills_up_somewhere(call: str, whole: Path, tmp_path: Path):
    """At the first write, at a checkpoint, and near the end."""
    count = count_calls(tmp_path / "counted", call)
    assert count > 10
    for place, fails_from in enumerate((0, count // 2, count - 1)):
        number = ERRORS[place]
        assert_fault_is_survived(tmp_path / f"{fails_from}", whole, call, fails_from, number)


@pytest.mark.full
@pytest.mark.parametrize("call", CALLS)
def test_the_disk_fills_up_anywhere(call: str, whole: Path, tmp_path: Path):
    """At each single write of a run."""
    for fails_from in range(count_calls(tmp_path / "counted", call)):
        number = ERRORS[fails_from % len(ERRORS)]
        assert_fault_is_survived(tmp_path / f"{fails_from}", whole, call, fails_from, number)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from seqrun import files
from seqrun.records import checkpoint
from seqrun.records.progress import COUNTERS
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
kind, directory = sys.argv[1], Path(sys.argv[2])
if kind == "checkpoint":
    counters = dict.fromkeys(COUNTERS, 0)
    counters |= {"global_step": 7, "task_is_done": False, "task_losses": [], "timing": {}}
    state = {"counters": counters, "callbacks": {}, "loggers": {}}
    checkpoint.save(checkpoint.Checkpoint({"a": np.ones(3)}, state), directory, config_hash="abc")
else:
    files.write_atomically(directory / kind, "new")
"""


@pytest.mark.parametrize("kind", ["results.json", "accuracy_matrix.csv", "checkpoint"])
def test_killed_between_writing_and_naming(kind: str, tmp_path: Path):
    """The old file is still there, and the temporary file can be removed."""
    if kind != "checkpoint":
        (tmp_path / kind).write_text("old", encoding="utf-8")
    process = subprocess.run([sys.executable, "-c", KILLED, kind, tmp_path], timeout=100)
    assert process.returncode == -signal.SIGKILL
    left = list(tmp_path.rglob(f"*{TEMPORARY}"))
    assert len(left) == 1
    if kind == "checkpoint":
        assert good_checkpoints_named(tmp_path) == []
    else:
        assert (tmp_path / kind).read_text(encoding="utf-8") == "old"
    remove_temporaries(left[0].parent)
    assert not left[0].exists()


def good_checkpoints_named(directory: Path) -> list[str]:
    """Return the names of all checkpoints, without temporary ones."""
    return [p.name for p in (directory / "checkpoints").iterdir() if p.name[0] != "."]


@pytest.mark.ci
def test_a_process_says_it_in_one_line(tmp_path: Path):
    """A limit on file sizes imitates a full disk; the exit status is 1."""
    code = (
        "import resource, signal, sys, runpy\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        f"sys.argv = ['run.py', *sys.argv[1:]]\nrunpy.run_path({str(RUN)!r}, run_name='__main__')"
    )
    command = [sys.executable, "-B", "-c", code, *SMALL, "algo=er", f"hydra.run.dir={tmp_path}/r"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "File too large" in done.stderr and "checkpoints" in done.stderr
    assert_intact(tmp_path / "r", config_hash(config_of("algo=er")))

"""How a process that imported a framework ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqrun.processes import run_in_processes

RUN = Path(__file__).parents[2] / "run.py"
ENDING = """
import atexit, sys, threading, time
from seqrun.leaving import leave

class Found:
    def __init__(self): self.itself = self
    def __del__(self): print("what Python finds")

atexit.register(leave, 3)
atexit.register(print, "what others do")
kept = Found()
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
sys.stderr.write("no line's end")
"""


def test_everything_ends_but_what_lies_about():
    """Threads first, then what others registered; what was printed is there, into a pipe too."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "no line's end")
    assert done.stdout == "a thread\nwhat others do\n"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--help"], 0),
        (["algo=nope"], 2),
        (["optimizer.lr=1e30", "benchmark.num_tasks=1"], 1),
        (["algo=naive", "benchmark.num_tasks=1", "benchmark.samples_per_task=20"], 0),
        (["--cfg", "nope"], 2),
    ],
)
def test_status_of_the_command(tmp_path: Path, argv: list[str], status: int):
    """Whoever ends it."""
    command = [sys.executable, str(RUN), *argv, f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    assert bool(done.stderr) == (status != 0)


def test_an_error_that_is_nobodys_shows_its_traceback(tmp_path: Path):
    """Nothing can be written to stdout."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-u", str(RUN), "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "No space left" in done.stderr


def write_at_exit(path: str) -> str:
    """Have something written when this process ends."""
    import atexit

    atexit.register(Path(path).write_text, "ended")
    return path


def test_a_worker_ends_like_the_command(tmp_path: Path):
    """What was registered in it is done."""
    file, told = str(tmp_path / "ended"), []
    run_in_processes([file], write_at_exit, lambda *found: told.append(found), processes=1)
    assert told == [(file, file)] and os.listdir(tmp_path) == ["ended"]

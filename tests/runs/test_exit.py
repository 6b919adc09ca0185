"""`exit_process` ends a process without Python's clean-up of its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seqrun.cli import run as command
from seqrun.runs.processes import run_in_processes

RUN = Path(__file__).parents[2] / "run.py"
ENDING = """
import atexit, logging.handlers, sys, threading, time
from seqrun.runs.exit import exit_process

class Collected:
    def __init__(self): self.itself = self
    def __del__(self): print("collected")

atexit.register(exit_process, 3)
atexit.register(print, "registered")
kept = Collected()
log = logging.handlers.MemoryHandler(9, target=logging.StreamHandler(sys.stdout))
log.emit(logging.makeLogRecord({"msg": "logged", "levelno": 10}))
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
sys.stderr.write("unfinished line")
"""


def test_without_it_python_collects_the_object():
    """Otherwise the other tests would prove nothing."""
    code = ENDING.replace("atexit.register(exit_process, 3)", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and done.stdout.endswith("collected\n")


def test_everything_else_is_done():
    """First threads, then registered functions; the output is flushed, into a pipe too."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (3, "unfinished line")
    assert done.stdout == "thread\nregistered\nlogged\n"


@pytest.mark.ci
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
    """Whether Hydra, the preflight or the run ends it."""
    command = [sys.executable, str(RUN), *argv, f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == status, done.stderr
    assert bool(done.stderr) == (status != 0)


def test_an_unexpected_error_shows_its_traceback(tmp_path: Path):
    """Here stdout cannot be written."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-u", str(RUN), "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8")
    assert done.returncode == 1 and "No space left" in done.stderr


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("return 0", 0),
        ("return 2", 2),
        ("raise SystemExit", 0),
        ("raise SystemExit(143)", 143),
        ("raise SystemExit('message')", 1),
        ("raise KeyboardInterrupt", 130),
        ("raise ValueError", 1),
    ],
)
def test_the_command_exits_with_its_status(tmp_path: Path, ending: str, status: int):
    """Python collects nothing any more."""
    collected = ENDING[ENDING.index("class") : ENDING.index("atexit.register(exit_process")]
    source = (
        Path(command.__file__)
        .read_text(encoding="utf-8")
        .replace("    from seqrun.cli import preflight\n", f"    {ending}\n")
    )
    source = source.replace("if __name__", f"{collected}kept = Collected()\nif __name__")
    (file := tmp_path / "run.py").write_text(source, encoding="utf-8")
    done = subprocess.run([sys.executable, str(file)], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert ("message" in done.stderr) == ("message" in ending)


def test_a_full_disk():
    """Python reports it, with the same status as without `exit_process`."""
    registered = (
        "import atexit\nfrom seqrun.runs.exit import exit_process\n"
        "atexit.register(exit_process, 0)\n"
    )
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    found = []
    for first in ("", registered):
        command = [sys.executable, "-c", f"{first}print('text')"]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", env=buffered
            )
        found.append((done.returncode, done.stderr))
    assert found[0] == found[1] and found[0][0] == 120


class Collected:
    """Writes a file when Python collects it."""

    def __init__(self, path: str) -> None:
        self.itself, self.path = self, path

    def __del__(self) -> None:
        Path(self.path).write_text("collected", encoding="utf-8")


kept = []


def end_slowly(folder: str) -> str:
    """Leave traces at the end of this process, without `exit_process`."""
    import atexit

    from seqrun.runs.exit import exit_process

    atexit.unregister(exit_process)
    return end_with_traces(folder)


def end_with_traces(folder: str) -> str:
    """Have one file written when this process ends, and one when Python collects an object."""
    import atexit

    atexit.register(Path(folder, "ended").write_text, "")
    kept.append(Collected(f"{folder}/collected"))
    return folder


@pytest.mark.ci
@pytest.mark.parametrize(
    ("work", "left"), [(end_with_traces, {"ended"}), (end_slowly, {"ended", "collected"})]
)
def test_a_worker_ends_like_the_command(tmp_path: Path, work: Callable[[str], str], left: set):
    """Functions that were registered in it run."""
    folder, results = str(tmp_path), []
    run_in_processes([folder], work, lambda *result: results.append(result), processes=1)
    assert results == [(folder, folder)] and set(os.listdir(tmp_path)) == left

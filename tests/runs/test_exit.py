"""How a process that imported a framework ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seqrun.runs.processes import run_in_processes

RUN = Path(__file__).parents[2] / "run.py"
ENDING = """
import atexit, logging.handlers, sys, threading, time
from seqrun.runs.exit import exit_process

class Found:
    def __init__(self): self.itself = self
    def __del__(self): print("what Python finds")

atexit.register(exit_process, 3)
atexit.register(print, "what others do")
kept = Found()
log = logging.handlers.MemoryHandler(9, target=logging.StreamHandler(sys.stdout))
log.emit(logging.makeLogRecord({"msg": "what was logged", "levelno": 10}))
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
sys.stderr.write("no line's end")
"""


def test_python_finds_by_itself_what_lies_about():
    """Else the others would show nothing."""
    code = ENDING.replace("atexit.register(exit_process, 3)", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("what Python finds\n")


def test_everything_ends_but_what_lies_about():
    """Threads first, then what others registered; what was printed is there, into a pipe too."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "no line's end")
    assert done.stdout == "a thread\nwhat others do\nwhat was logged\n"


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


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("return 0", 0),
        ("return 2", 2),
        ("raise SystemExit", 0),
        ("raise SystemExit(143)", 143),
        ("raise SystemExit('told')", 1),
        ("raise KeyboardInterrupt", 130),
        ("raise ValueError", 1),
    ],
)
def test_the_command_leaves_with_its_status(tmp_path: Path, ending: str, status: int):
    """Python finds nothing any more."""
    found = ENDING[ENDING.index("class") : ENDING.index("atexit.register(exit_process")]
    source = RUN.read_text().replace("    from seqrun.cli import preflight\n", f"    {ending}\n")
    source = source.replace("if __name__", f"{found}kept = Found()\nif __name__")
    (file := tmp_path / "run.py").write_text(source)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert ("told" in done.stderr) == ("told" in ending)


def test_nobody_reads():
    """Python says so, with the status that it has by itself."""
    registered = (
        "import atexit\nfrom seqrun.runs.exit import exit_process\n"
        "atexit.register(exit_process, 0)\n"
    )
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    found = []
    for first in ("", registered):
        command = [sys.executable, "-c", f"{first}print('told')"]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered
            )
        found.append((done.returncode, done.stderr))
    assert found[0] == found[1] and found[0][0] == 120


class Found:
    """Says that Python has found it."""

    def __init__(self, path: str) -> None:
        self.itself, self.path = self, path

    def __del__(self) -> None:
        Path(self.path).write_text("found")


kept = []


def end_slowly(folder: str) -> str:
    """As without `exit_process`."""
    import atexit

    from seqrun.runs.exit import exit_process

    atexit.unregister(exit_process)
    return end_with_traces(folder)


def end_with_traces(folder: str) -> str:
    """Have something written when this process ends, and when Python finds what lies about."""
    import atexit

    atexit.register(Path(folder, "ended").write_text, "")
    kept.append(Found(f"{folder}/found"))
    return folder


@pytest.mark.parametrize(
    ("work", "left"), [(end_with_traces, {"ended"}), (end_slowly, {"ended", "found"})]
)
def test_a_worker_ends_like_the_command(tmp_path: Path, work: Callable[[str], str], left: set):
    """What was registered in it is done."""
    folder, told = str(tmp_path), []
    run_in_processes([folder], work, lambda *found: told.append(found), processes=1)
    assert told == [(folder, folder)] and set(os.listdir(tmp_path)) == left

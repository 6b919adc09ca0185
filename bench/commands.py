"""Commands that parts of `make bench` run: Python, whole experiments, fresh compilation caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CACHES = "JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"
STEP_SECONDS = 0.2


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """Say what is measured, and print nothing that it prints: stdout is for the numbers."""
    sys.stderr.write(f"{what}\n")
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


class Measured(NamedTuple):
    """A whole experiment: seconds, peak MiB of all its processes, and its results.json."""

    seconds: float
    peak: float
    record: dict[str, Any]


def command(
    *arguments: str, python: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run a Python command in the project's root and return its stdout."""
    done = subprocess.run(
        [str(python or sys.executable), *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    return done.stdout


def compiling_in(folder: Path) -> dict[str, str]:
    """Return the environment in which compiled programs are kept below `folder` alone."""
    return os.environ | {name: str(folder / name) for name in CACHES}


def resident(pid: int) -> int:
    """Return the bytes of memory of a process and its descendants, shared pages divided."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        total = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("Pss:"))
        # Of every thread: a child belongs to the one that started it.
        listed = [
            path.read_text(encoding="utf-8")
            for path in Path(f"/proc/{pid}/task").glob("*/children")
        ]
    except (OSError, StopIteration):  # it has ended
        return total
    return total + sum(resident(int(child)) for child in " ".join(listed).split())


def measured(*overrides: str, environment: Mapping[str, str] | None = None) -> Measured:
    """Run an experiment in a run directory of its own, from the command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, "run.py", *overrides, f"hydra.run.dir={folder}/run"]
        started = time.perf_counter()
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        peak = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(STEP_SECONDS):
                peak = max(peak, resident(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
        if code:
            raise subprocess.CalledProcessError(code, arguments)
        record = json.loads(Path(folder, "run", "results.json").read_text(encoding="utf-8"))
    return Measured(seconds, peak / 2**20, record)

"""Fixtures for the tests of configurations and commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seqrun.cli import preflight

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Make an empty directory the working directory."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.delenv("SEQRUN_DATA", raising=False)
    return directory


@pytest.fixture
def jobs_of(elsewhere) -> Callable[..., list[preflight.Job]]:
    """Return the checked jobs of a command line, from an empty working directory."""
    return lambda *argv: preflight.check(argv, CONF)


@pytest.fixture
def run_py(elsewhere) -> Callable[..., subprocess.CompletedProcess]:
    """Run run.py in a new process, from an empty working directory."""

    def run(*argv: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *argv],
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    return run


@pytest.fixture
def mypkg(tmp_path, monkeypatch) -> Path:
    """Put a user's package `mypkg` on the path: callbacks that fail, and one that sends SIGTERM."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "mypkg.py").write_text(
        "from seqrun.callbacks import BaseCallback\n"
        "class Fails(BaseCallback):\n"
        "    def on_before_epoch(self, run):\n"
        "        raise RuntimeError('the disk is full')\n"
        "class FailsAtSeed0(Fails):\n"
        "    def on_before_epoch(self, run):\n"
        "        if run.algorithm.seed == 0:\n"
        "            super().on_before_epoch(run)\n"
        "class Terminates(BaseCallback):\n"
        "    def on_before_epoch(self, run):\n"
        "        import os, signal\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(folder))
    return folder

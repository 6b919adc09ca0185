"""Fixtures for the tests of multiruns: the command line, in this process or in a new one."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

RUN = Path(__file__).parents[2] / "run.py"
TINY = (
    "algo=naive", "benchmark.num_tasks=2", "benchmark.samples_per_task=40", "backbone.width=16",
    "logger=[]",
)  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Make an empty directory the working directory."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def cli(elsewhere, monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """Run run.py like a command, but in this process; return status, stdout and stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(RUN), *argv])
        monkeypatch.setattr("seqrun.cli.run.atexit", Mock())  # or it would set pytest's exit status
        capfd.readouterr()
        if logging := sys.modules.get("absl.logging"):  # closes a stream that is not sys.stderr
            logging.get_absl_handler().python_handler.stream = sys.stderr
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(RUN), run_name="__main__")
        return (ended.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def start(elsewhere) -> Callable[..., subprocess.Popen]:
    """Start run.py in a new process group."""

    def begin(*argv: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(RUN), *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    return begin


@pytest.fixture
def mypkg(tmp_path, monkeypatch) -> Path:
    """Put a user's package on the path; its callback does what the file `do` beside it says."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "mypkg.py").write_text(
        "import os, pathlib, signal\n"
        "from seqrun.callbacks import BaseCallback\n"
        "DO = pathlib.Path(__file__).with_name('do')\n"
        "class Does(BaseCallback):\n"
        "    def on_before_epoch(self, run):\n"
        "        if run.algorithm.seed == 1 and run.task == 2 and DO.exists():\n"
        "            command = DO.read_text()\n"
        "            DO.unlink()\n"
        "            exec(command)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    sys.modules.pop("mypkg", None)
    return folder


MINE = ("allow_targets=[mypkg]", "+callbacks.mine._target_=mypkg.Does")

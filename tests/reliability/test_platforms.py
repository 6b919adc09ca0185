"""macOS and Windows lack calls that Linux has: without them everything works all the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reliability import other_systems

from hydra_plugins.seqrun.local_processes import LocalProcessesLauncher
from hydra_plugins.seqrun.slurm import SlurmLauncher
from seqrun.callbacks import Interrupted, InterruptionCallback
from seqrun.checks import ConfigError
from seqrun.files import write_atomically
from seqrun.records.results import peak_rss_bytes
from seqrun.runs import processes
from seqrun.runs.processes import run_in_processes
from seqrun.system import num_cores
from seqrun.training.engine.cache import compilation_cache
from seqrun.training.limits import available_bytes, total_bytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=other_systems.MODULES)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Hide what a system lacks."""
    other_systems.hide(request.param, monkeypatch.delattr, monkeypatch.setattr)
    return request.param


def test_cores(system: str):
    """All of the machine's."""
    assert num_cores() == os.cpu_count()
    assert LocalProcessesLauncher(None, retries=0).n_jobs == os.cpu_count()


def test_memory(system: str):
    """That of the machine; there are no cgroups."""
    assert 0 < available_bytes() and 0 < total_bytes()


def test_where_programs_are_kept(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Python says which kind of processor this is."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation_cache("jax")
    assert folder is not None and Path(folder).parent == tmp_path / "seqrun"


def test_peak_memory(monkeypatch: pytest.MonkeyPatch):
    """macOS counts in bytes, Linux in KiB; Windows cannot be asked."""
    monkeypatch.setattr(sys, "platform", "linux")
    in_kib = peak_rss_bytes()
    monkeypatch.setattr(sys, "platform", "darwin")
    in_bytes = peak_rss_bytes()
    assert in_kib and in_bytes and in_kib == pytest.approx(1024 * in_bytes, rel=0.05)
    other_systems.hide("windows", monkeypatch.delattr, monkeypatch.setattr)
    assert peak_rss_bytes() is None


def test_files(system: str, tmp_path: Path):
    """Windows cannot flush a directory to disk."""
    write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "new"


def test_signals(system: str):
    """Those that there are end a run."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"), InterruptionCallback().listening():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.ci
def test_compiled_steps(system: str):
    """Signals do not wait where they cannot."""
    from seqrun.training.engine.compile.torch import CompiledSteps

    steps = CompiledSteps(lambda *_: None)
    steps._program = lambda *_: "called"
    assert steps(None, None, None, None, {}) == "called"
    steps.close()


@pytest.mark.ci
def test_stopping_a_process_that_has_ended(system: str, monkeypatch: pytest.MonkeyPatch):
    """Windows does not say that there is no such process: it takes the number for a wrong one."""
    asked, ended = [], []

    def refuse(*told: int) -> None:
        asked.append(told)
        raise OSError(22, "The parameter is incorrect")

    def stop(item: Any, result: Any) -> None:
        ended.append(item)
        if len(ended) == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(processes.os, "kill", refuse)
    with pytest.raises(Interrupted):
        run_in_processes(["PATH"] * 3, os.getenv, stop, processes=1)
    assert {number for _, number in asked} == {signal.SIGTERM}


def test_slurm_says_that_it_is_not_here(system: str, monkeypatch: pytest.MonkeyPatch):
    """Before anything is submitted."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    names = SlurmLauncher.__init__.__annotations__.keys() - {"return"}
    with pytest.raises(ConfigError, match="needs SLURM, which runs on Linux"):
        SlurmLauncher(**dict.fromkeys(names))


SMALL = (
    "algo=er", "benchmark.num_tasks=2", "benchmark.samples_per_task=40", "backbone.width=16",
)  # fmt: skip
COMMANDS = {
    "one run": ("backend=torch",),
    "seeds": ("backend=jax", "seed=[0,1]", "seeds_strategy=processes"),
    "multirun": ("-m", "hydra/launcher=local_processes", "seed=0,1"),
}
ASCII = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii", "PYTHONWARNDEFAULTENCODING": "1"}
"""A terminal that knows nothing else; files that are opened in the default encoding are told."""
OURS = tuple(str(ROOT / name) for name in ("run.py", "src", "reproductions", "sweeps"))
"""Where our code lies; a virtual environment may lie within the checkout too."""


def matrices(how: str, place: Path, **environment: str) -> list[list]:
    """Return the accuracy matrices of a command that ends well and opens its files as UTF-8."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *COMMANDS[how], *SMALL]
        + [f"hydra.run.dir={place}", f"hydra.sweep.dir={place}"],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, **ASCII, **environment},
    )
    assert done.returncode == 0, done.stderr
    logs = [path.read_text(encoding="utf-8") for path in place.rglob("*.log")]
    assert len(logs) == (0 if how == "one run" else 2)
    told = [line for text in (done.stderr, *logs) for line in text.splitlines()]
    warned = [line for line in told if "EncodingWarning" in line]
    assert warned and not [line for line in warned if line.startswith(OURS)]
    records = [json.loads(p.read_bytes()) for p in sorted(place.rglob("results.json"))]
    assert len(records) == (2 if how == "multirun" else 1)
    return [run["accuracy_matrix"] for record in records for run in record["runs"]]


@pytest.fixture(scope="module", params=COMMANDS)
def on_linux(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[str, list[list]]:
    """Return a command and its numbers where nothing is hidden."""
    return request.param, matrices(request.param, tmp_path_factory.mktemp("here") / "run")


@pytest.mark.ci
@pytest.mark.parametrize("name", other_systems.MODULES)
def test_an_experiment(name: str, on_linux: tuple[str, list[list]], tmp_path: Path):
    """It ends with the numbers that it has on Linux, in one process and in several."""
    how, expected = on_linux
    shutil.copy(other_systems.__file__, tmp_path / "sitecustomize.py")
    found = matrices(how, tmp_path / "run", HIDDEN=name, PYTHONPATH=str(tmp_path))
    assert found == expected

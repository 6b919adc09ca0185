"""Several seeds of one run, in several processes, give the numbers of single runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from experiments import jax_in_full

from seqrun.callbacks import BaseCallback
from seqrun.config.experiment import Experiment
from seqrun.runs import runner, seeds
from seqrun.runs.processes import run_in_processes
from seqrun.runs.seeds import WORTH_PROCESSES, choose_strategy

ROOT = Path(__file__).parents[2]
SMALL = ["backbone.width=16", "benchmark.samples_per_task=100", "benchmark.num_tasks=3"]


def command(directory: Path, *overrides: str) -> list[str]:
    """Return the command line of a small run."""
    return [sys.executable, "run.py", *SMALL, f"hydra.run.dir={directory}", *overrides]


def call(directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(directory, *overrides), cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300
    )


def record(directory: Path) -> dict[str, Any]:
    """Return results.json."""
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def facts(directory: Path) -> list[Any]:
    """Return the part of each seed's record that must not depend on how it was run."""
    runs = record(directory)["runs"]
    keys = ("seed", "completed", "accuracy_matrix", "metrics", "train_loss")
    return [[run[key] for key in keys] for run in runs]


@pytest.mark.ci
@jax_in_full
def test_processes_give_the_same_numbers_as_sequential_runs(backend: str, tmp_path: Path):
    """To the bit, with one thread each; the files of the seeds and those at the top, too."""
    for strategy in ("sequential", "processes"):
        algo = [f"backend={backend}", "algo=er", "seed=[0,1,2]", f"seeds_strategy={strategy}"]
        done = call(tmp_path / strategy, *algo)
        assert done.returncode == 0, done.stderr
        assert "average accuracy" in done.stdout.splitlines()[-1]
        assert record(tmp_path / strategy)["execution"]["strategy"] == strategy
    one, other = tmp_path / "sequential", tmp_path / "processes"
    assert facts(one) == facts(other)
    for name in ("metrics.jsonl", "accuracy_matrix.csv", "seeds/1/metrics.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert record(one)["config_hash"] == record(other)["config_hash"]


@pytest.mark.ci
def test_a_failed_seed_does_not_stop_the_others(tmp_path: Path):
    """The record says which failed and why; the others are kept, and the same command continues."""
    diverging = ["optimizer.lr=1e18", "seed=[0,1]", "seeds_strategy=processes"]
    done = call(tmp_path, *diverging)
    assert done.returncode == 1
    assert "seed 0:" in done.stderr and "seed 1:" in done.stderr and "the loss is" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in (tmp_path / "seeds" / "1" / "output.log").read_text(encoding="utf-8")
    found = record(tmp_path)
    assert found["status"] == "failed" and "seed 0" in found["error"]["message"]


LONG = ["training.epochs_per_task=20", "algo=er", "seed=[0,1,2]", "seeds_strategy=processes"]
LONG += ["callbacks.checkpoint.every_epoch=true"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run to the end without an interruption."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    done = call(directory, *LONG)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.ci
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.full), signal.SIGKILL]
)
def test_stopped_and_continued(number: int, whole: Path, tmp_path: Path):
    """The same command ends with the numbers of a run without interruption."""
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        command(stopped, *LONG),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while len(list(stopped.glob("seeds/*/checkpoints/*"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    code = process.wait(60)
    assert code == (128 + number if number == signal.SIGTERM else -number)
    while living(process.pid):  # a process that still writes would disturb the next run
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGTERM:
        assert record(stopped)["status"] == "interrupted"
    done = call(stopped, *LONG)
    assert done.returncode == 0, done.stderr
    assert facts(stopped) == facts(whole)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def living(group: int) -> list[int]:
    """Return the running processes of a group; zombies are left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(of) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.ci
def test_a_process_has_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For the libraries that it imports; its engine has as many as in any other process."""
    told: list[Any] = []
    names = ["OMP_NUM_THREADS", "NPROC"]
    run_in_processes(names, os.getenv, lambda *found: told.append(found), processes=1)
    assert told == [(name, "1") for name in names]
    for asked in (None, 3):
        built = SimpleNamespace(num_threads=asked, engine=SimpleNamespace(execution={}))
        monkeypatch.setattr(runner, "build", lambda *_, built=built: built)
        job = seeds.SeedJob(experiment=Experiment.of({}), seed=0, directory=tmp_path)
        assert runner._build_for_process(job).num_threads == asked


@pytest.mark.ci
def test_a_record_that_arrives_after_a_seed_has_ended(capsys: pytest.CaptureFixture[str]):
    """Is outdated, so it is neither recorded nor printed."""
    updated: list[tuple[int, bool]] = []
    reports = seeds.SeedReports(lambda run, end: updated.append((run.seed, end)))
    for seed, end in ((0, False), (0, True), (0, False), (1, False), (0, True)):
        found = SimpleNamespace(seed=seed, accuracy_matrix=np.array([[0.1, 0.1], [0.5, np.nan]]))
        reports.take(found, completed=end)
    assert updated == [(0, False), (0, True), (1, False)]
    assert capsys.readouterr().err.count("seed 0: task 1/2, average accuracy 50.0 %") == 1


def algorithm(backend: str = "torch", device: str = "cpu", samples: int = 10**6) -> Any:
    """Return a stand-in with what `choose_strategy` reads."""
    return SimpleNamespace(
        backend=backend,
        device=device,
        callbacks=(),
        random=None,
        engine_type=SimpleNamespace(find_device=lambda wanted: wanted),
        benchmark=SimpleNamespace(prepare=lambda streams: None, batch_size_of=lambda task: 1),
        trained_tasks=lambda: [1, 2],
        training_size=lambda task: samples // 4,
        epochs=lambda task: 2,
        batches=lambda task: samples // 4 * 2,
    )


def test_the_rule(monkeypatch: pytest.MonkeyPatch):
    """It depends on device, backend, cores, seeds and planned samples."""
    monkeypatch.setattr(seeds, "num_cores", lambda: 2)
    assert choose_strategy("auto", algorithm(), 2) == "processes"
    assert choose_strategy("auto", algorithm(), 1) == "sequential"
    assert choose_strategy("sequential", algorithm(), 2) == "sequential"
    assert choose_strategy("auto", algorithm(device="cuda", backend="jax"), 2) == "vmap"
    assert choose_strategy("auto", algorithm(device="cuda"), 2) == "sequential"
    assert choose_strategy("auto", algorithm(samples=WORTH_PROCESSES // 2), 2) == "processes"
    assert choose_strategy("auto", algorithm(samples=WORTH_PROCESSES // 2 - 4), 2) == "sequential"
    sees_steps = type("SeesSteps", (BaseCallback,), {"on_after_training_step": lambda *_: None})()
    on_gpu = algorithm(device="cuda", backend="jax")
    on_gpu.callbacks = (sees_steps,)
    assert choose_strategy("auto", on_gpu, 2) == "sequential"
    with monkeypatch.context() as within_a_sweeps_process:
        within_a_sweeps_process.setattr(seeds.multiprocessing, "parent_process", lambda: object())
        assert choose_strategy("auto", algorithm(), 2) == "sequential"
    assert choose_strategy("auto", algorithm(), 2) == "processes"
    monkeypatch.setattr(seeds, "num_cores", lambda: 1)
    assert choose_strategy("auto", algorithm(), 2) == "sequential"

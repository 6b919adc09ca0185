"""A job of a multirun has what Hydra promises: callbacks, configuration, log and directory."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from seqrun.cli.listing import CONF

CALLBACKS = """\
import json, os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback


class Writes(Callback):
    def _write(self, event, config, **more):
        found = {"event": event, "seed": config.seed, "num": config.hydra.job.num, **more}
        with open(os.environ["EVENTS"], "a") as file:
            file.write(json.dumps(found) + "\\n")

    def on_job_start(self, config, *, task_function, **kwargs):
        self._write("start", config, task=task_function.__name__)

    def on_job_end(self, config, job_return, **kwargs):
        self._write("end", config, status=job_return.status.name, own=job_return.cfg.seed,
                    launcher="launcher" in job_return.hydra_cfg.hydra,
                    value=job_return.return_value)
"""
SMALL = ["algo=naive", "benchmark.num_tasks=1", "benchmark.samples_per_task=20"]


@pytest.fixture
def multirun(tmp_path: Path):
    """Return a function that runs `-m` with a callback that writes down what it hears."""
    (tmp_path / "mine.py").write_text(CALLBACKS, encoding="utf-8")
    heard = tmp_path / "events"

    def run(*argv: str) -> list[dict]:
        heard.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, str(CONF.parent / "run.py"), "-m", *SMALL, "seed=3,4", *argv],
            cwd=tmp_path,
            env={
                **os.environ,
                "EVENTS": str(heard),
                "PYTHONPATH": str(tmp_path),
                "SEQRUN_ALLOW_TARGETS": "mine",
            },
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in heard.read_text().splitlines()]

    return run


WITH_CALLBACK = ["+hydra.callbacks.mine._target_=mine.Writes"]


@pytest.mark.ci
def test_callbacks_hear_of_every_job(multirun):
    """In this process at each job's start and end; elsewhere, of all starts first."""
    found = multirun(*WITH_CALLBACK)
    assert [(e["event"], e["seed"], e["num"]) for e in found] == [
        ("start", 3, 0), ("end", 3, 0), ("start", 4, 1), ("end", 4, 1),
    ]  # fmt: skip
    assert found[0]["task"] == "main"
    assert all(e["status"] == "COMPLETED" and e["own"] == e["seed"] for e in found[1::2])
    assert all(e["launcher"] and 0 <= e["value"] <= 1 for e in found[1::2])
    elsewhere = multirun(*WITH_CALLBACK, "hydra/launcher=local_processes")
    assert [e["event"] for e in elsewhere] == ["start", "start", "end", "end"]


@pytest.mark.ci
def test_pickled_information_and_log_files(multirun, tmp_path: Path):
    """Hydra's PickleJobInfoCallback, `hydra/job_logging=default` and `hydra.job.chdir`."""
    pickles = "+hydra.callbacks.info._target_=hydra.experimental.callbacks.PickleJobInfoCallback"
    multirun(*WITH_CALLBACK, pickles, "hydra/job_logging=default", "hydra.job.chdir=true")
    directories = sorted(tmp_path.glob("sweep_runs/grid/*/results.json"))
    assert len(directories) == 2
    for directory in (path.parent for path in directories):
        assert (directory / "run.log").is_file()
        with open(directory / ".hydra" / "config.pickle", "rb") as file:
            config = pickle.load(file)
        with open(directory / ".hydra" / "job_return.pickle", "rb") as file:
            returned = pickle.load(file)
        assert returned.cfg.seed == config.seed and returned.status.name == "COMPLETED"
        assert returned.working_dir == str(directory)

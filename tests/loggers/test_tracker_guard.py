"""A tracker that fails, hangs or falls behind is dropped with a warning; the run continues."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import build

from seqrun.callbacks import MetricCallback
from seqrun.checks import ConfigError
from seqrun.loggers import (
    CometLogger,
    RunInfo,
    TensorBoardLogger,
    TrackerLogger,
    WandbLogger,
    tracker,
)

NAME = {"algo": "ewc", "benchmark": "rotated_digits", "backbone": "mlp", "backend": "torch"}


@dataclass(kw_only=True, eq=False)
class Recording(TrackerLogger):
    """Record every call; fail or hang at one of them."""

    name = "recording"
    package = "json"

    calls: list[Any] = field(default_factory=list)
    fail_at: str = ""
    hang_at: str = ""
    then_fails: bool = False
    release: threading.Event = field(default_factory=threading.Event)
    was_released: bool = True  # unless it hung for too long

    def _do(self, what: str, *details: Any) -> None:
        if what == self.fail_at:
            raise SystemExit("no disk\nspace left")  # clients may raise anything
        if what == self.hang_at:
            self.was_released = self.release.wait(20)
            if self.then_fails:
                raise ConnectionError("too late")
        self.calls.append((what, *details))

    def start(self, run: RunInfo, directory: Path, earlier: Any) -> None:
        self._do("start", directory.name, dict(earlier))

    def write(self, values: Any, step: int, epoch: int, task: int) -> None:
        self._do("write", dict(values), step, epoch, task)

    def write_summary(self, metrics: Any) -> None:
        self._do("summary", *metrics)

    def write_figure(self, name: str, png: bytes) -> None:
        self._do("figure", name, png[:4])

    def finish(self, status: str) -> None:
        self._do("finish", status)


def run_in(directory: Path) -> RunInfo:
    return RunInfo(name=NAME, seed=0, num_tasks=2, directory=directory)


def fit(directory: Path, *loggers: TrackerLogger) -> Any:
    algorithm = build("naive", "torch", callbacks=[MetricCallback()])
    algorithm.loggers, algorithm.run_dir = list(loggers), directory
    algorithm.fit()
    return algorithm


def warnings(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.fixture(scope="module")
def plain_run() -> Any:
    """Return a run without any logger."""
    algorithm = build("naive", "torch", callbacks=[MetricCallback()])
    algorithm.fit()
    return algorithm


def assert_same_bits(algorithm: Any, plain_run: Any) -> None:
    arrays = algorithm.export_arrays()
    for name, array in plain_run.export_arrays().items():
        assert arrays[name].tobytes() == array.tobytes()
    np.testing.assert_array_equal(algorithm.accuracy_matrix, plain_run.accuracy_matrix)


def test_calls_come_in_order_and_all_of_them(tmp_path, capsys):
    logger = Recording(every_steps=3)
    logger.open(run_in(tmp_path))
    logger.log({"a": 1.0}, step=0, epoch=0, task=0)
    logger.log_steps("loss", np.arange(4, dtype=np.float32), first_step=0, epoch=1, task=1)
    logger.log_steps("loss", np.arange(4, 9, dtype=np.float32), first_step=4, epoch=1, task=1)
    logger.log_matrix("accuracy_matrix", np.full((3, 2), 0.5), step=9, task=1)
    logger.log_summary({"average_accuracy": 0.5})
    logger.close("completed")
    assert logger.calls == [
        ("start", "recording", {}),
        ("write", {"a": 1.0}, 0, 0, 0),
        ("write", {"loss": 0.0}, 0, 1, 1),
        ("write", {"loss": 3.0}, 3, 1, 1),
        ("write", {"loss": 6.0}, 6, 1, 1),
        ("summary", "average_accuracy"),
        ("figure", "accuracy_matrix", b"\x89PNG"),
        ("finish", "completed"),
    ]
    assert warnings(capsys) == []


def test_a_run_that_was_not_completed_has_no_figure(tmp_path):
    logger = Recording()
    logger.open(run_in(tmp_path))
    logger.log_matrix("accuracy_matrix", np.full((3, 2), 0.5), step=9, task=1)
    logger.close("failed")
    assert [name for name, *_ in logger.calls] == ["start", "finish"]


def test_what_is_logged_is_copied(tmp_path):
    logger = Recording(hang_at="start")
    logger.open(run_in(tmp_path))
    values, losses = {"a": 1.0}, np.ones(2, np.float32)
    logger.log(values, step=0, epoch=0, task=0)
    logger.log_steps("loss", losses, first_step=0, epoch=1, task=1)
    values["a"], losses[:] = 2.0, 2.0
    logger.release.set()
    logger.close("failed")
    assert [v for name, *rest in logger.calls if name == "write" for v in rest[0].values()] == [
        1.0,
        1.0,
        1.0,
    ]


@pytest.mark.ci
@pytest.mark.parametrize("fail_at", ["start", "write", "summary", "figure", "finish"])
def test_one_that_fails(tmp_path, capsys, plain_run, fail_at):
    other = Recording()
    algorithm = fit(tmp_path, Recording(fail_at=fail_at), other)
    assert_same_bits(algorithm, plain_run)
    (warning,) = warnings(capsys)
    assert warning == (
        "warning: logger recording is dropped, the run continues: SystemExit: no disk space left"
    )
    assert other.calls[-1] == ("finish", "completed")


@pytest.mark.parametrize("hang_at", ["start", "write", "finish"])
def test_one_that_hangs(tmp_path, capsys, plain_run, hang_at):
    logger = Recording(hang_at=hang_at, close_seconds=0.3)
    algorithm = fit(tmp_path, logger)
    logger.release.set()
    logger._thread.join(20)
    assert logger.was_released, "the run waited for what is released after it"
    assert_same_bits(algorithm, plain_run)
    (warning,) = warnings(capsys)
    assert "it did not finish within 0.3 s of the run's end" in warning


def test_a_call_that_takes_too_long(tmp_path, capsys):
    logger = Recording(hang_at="write", call_seconds=0.05, then_fails=True)
    logger.open(run_in(tmp_path))
    for _ in range(100):
        logger.log({"a": 1.0}, step=0, epoch=0, task=0)
        time.sleep(0.01)
        if logger._dropped:
            break
    (warning,) = warnings(capsys)
    assert "a call has taken more than 0.05 s" in warning
    logger.close("completed")
    logger.release.set()
    logger._thread.join(20)
    assert logger.was_released, "there was nothing to wait for"
    assert warnings(capsys) == []


def test_one_that_falls_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracker, "MAX_QUEUED", 5)
    logger = Recording(hang_at="write")
    logger.open(run_in(tmp_path))
    for _ in range(20):
        logger.log({"a": 1.0}, step=0, epoch=0, task=0)
    (warning,) = warnings(capsys)
    assert "it is 5 calls behind" in warning
    logger.close("completed")
    logger.release.set()
    assert warnings(capsys) == []


def test_a_real_client_that_fails(tmp_path, capsys, plain_run):
    (tmp_path / "tensorboard").write_text("not a directory", encoding="utf-8")
    algorithm = fit(tmp_path, TensorBoardLogger())
    assert_same_bits(algorithm, plain_run)
    (warning,) = warnings(capsys)
    assert "logger tensorboard is dropped" in warning and "FileExistsError" in warning


@pytest.mark.parametrize("kind", [TensorBoardLogger, WandbLogger, CometLogger])
def test_bad_arguments(tmp_path, kind, monkeypatch):
    for key, value in (("every_steps", 0), ("call_seconds", 0), ("close_seconds", "1")):
        with pytest.raises(ConfigError, match=f"{key}={value!r}: must be"):
            kind(**{key: value})
    with pytest.raises(ConfigError, match="must be used in a run that has a directory"):
        kind().open(RunInfo(name=NAME, seed=0, num_tasks=2))
    kind().check()
    monkeypatch.setattr(tracker, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"logger.{kind.name}: needs the package {kind.package}"):
        kind().check()


@pytest.mark.parametrize("kind", [WandbLogger, CometLogger])
def test_modes(tmp_path, kind, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean offline"):
        kind(mode="ofline")
    monkeypatch.setattr(tracker, "find_spec", lambda package: None)
    logger = kind(mode="disabled")
    logger.check()
    algorithm = fit(tmp_path, logger)
    assert logger._thread is None and not list(tmp_path.iterdir())
    assert logger.export_state()["rows"] > 0 and algorithm.progress.global_step

"""A run continues from the last valid checkpoint, whatever is damaged in later ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reliability.small_runs import config_of
from reliability.test_signals import Signalled, interrupted
from safetensors.numpy import load_file, save

from seqrun.callbacks import MetricCallback
from seqrun.checks import ConfigError
from seqrun.config.hash import config_hash
from seqrun.records import checkpoint
from seqrun.records.checkpoint import DAMAGED, FOLDER, STATE_FILE, TENSORS_FILE, _checksum
from seqrun.runs import runner

OFTEN = ("callbacks.checkpoint.every_steps=2", "callbacks.checkpoint.every_epoch=false")
PARTS = (
    "callbacks=[metrics,checkpoint,early_stopping,stability_gap,timing]",
    "logger=[local,tensorboard]",
    "benchmark.validation_fraction=0.2",
    "callbacks.stability_gap.every_steps=3",
    *OFTEN,
)


def good(directory: Path, config: dict[str, Any]) -> str | None:
    """Return the name of the checkpoint from which a run would continue."""
    found, _ = checkpoint.latest(directory, config_hash=config_hash(config))
    return found.path.name if found else None


def last(directory: Path) -> Path:
    """Return the last checkpoint's folder."""
    return max(p for p in (directory / FOLDER).iterdir() if p.name[0].isdigit())


@pytest.mark.ci
def test_a_damaged_checkpoint_does_not_replace_a_valid_one(tmp_path: Path):
    """Only one is kept, and the damaged one is later than those of the continued run."""
    config = config_of("algo=naive", *OFTEN, "callbacks.checkpoint.keep=1")
    run = tmp_path / "run"
    runner.run_experiment(config, tmp_path / "whole")
    interrupted(config, run, Signalled(6, signal.SIGTERM))
    damaged = last(run)
    assert damaged.name == "000000014"
    tensors = (damaged / TENSORS_FILE).read_bytes()
    (damaged / TENSORS_FILE).write_bytes(tensors[:-9])
    (run / FOLDER / "backup").mkdir()
    interrupted(config, run, Signalled(2, signal.SIGTERM))
    assert good(run, config) == "000000006"
    names = {p.name for p in (run / FOLDER).iterdir()}
    assert names == {"000000006", damaged.name + DAMAGED, "backup"}
    runner.run_experiment(config, run)
    assert_same_end(run, tmp_path / "whole")


@pytest.mark.ci
def test_a_checkpoint_is_kept_although_later_ones_exist(tmp_path: Path):
    """A caller may continue from an earlier checkpoint; what it saves then is kept."""
    config = config_of("algo=naive", *OFTEN, "callbacks.checkpoint.keep=1")
    interrupted(config, tmp_path, Signalled(4, signal.SIGTERM))
    assert good(tmp_path, config) == "000000010"
    start = checkpoint.load(last(tmp_path), config_hash=config_hash(config))
    counters = {**start.state["counters"], "global_step": 4}
    earlier = checkpoint.Checkpoint(start.arrays, {**start.state, "counters": counters})
    path = checkpoint.save(earlier, tmp_path, config_hash=config_hash(config), keep=1)
    assert path is not None and path.is_dir()


def assert_same_end(run: Path, whole: Path) -> None:
    """Assert that two runs left the same bits."""
    for name in ("accuracy_matrix.csv", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert last(run).name == last(whole).name
    a, b = (last(d) / TENSORS_FILE for d in (run, whole))
    assert a.read_bytes() == b.read_bytes()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Run once to the end, and once into the second task's second epoch, with stateful parts."""
    folder = tmp_path_factory.mktemp("runs")
    config = config_of("algo=naive", *PARTS)
    runner.run_experiment(config, folder / "whole")
    interrupted(config, folder / "cut", Signalled(6, signal.SIGTERM))
    return config, folder


def tamper(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Change state and arrays of a checkpoint, and correct its checksums."""
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    arrays = load_file(path / TENSORS_FILE)
    change(state, arrays)
    tensors = save(arrays)
    state.pop("state_sha256")
    state["sha256"] = hashlib.sha256(tensors).hexdigest()
    state["state_sha256"] = _checksum(state)
    (path / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    (path / TENSORS_FILE).write_bytes(tensors)


def entry(part: str, key: str, value: Any) -> Callable[[dict, dict], None]:
    """Return a function that changes the stored state of a callback or logger."""

    def change(state: dict, arrays: dict) -> None:
        group = "loggers" if "Logger" in part else "callbacks"
        state[group][f"{part}-1"][key] = value

    return change


def nan_weights(state: dict, arrays: dict) -> None:
    """Make the best epoch's weights of early stopping NaN."""
    name = "callback/EarlyStoppingCallback-1/params/classifier/bias"
    arrays[name] = np.full_like(arrays[name], np.nan)


def strange_parameter(state: dict, arrays: dict) -> None:
    """Give the network a parameter of another shape."""
    arrays["params/classifier/bias"] = np.zeros(3, np.float32)


TAMPERED: dict[str, tuple[Callable[[dict, dict], None], str]] = {
    "best accuracy": (entry("EarlyStoppingCallback", "best", "x"), "best='x': must be a number"),
    "best weights": (nan_weights, "params/classifier/bias: is not finite"),
    "lines": (entry("LocalLogger", "bytes", 3), "bytes=3: must be the end of a line of"),
    "minimum": (entry("StabilityGapCallback", "minimum", "x"), "minimum: must be a list"),
    "parameter": (strange_parameter, "params/classifier/bias: is float32[3], must be float32[10]"),
}


@pytest.mark.ci
@pytest.mark.parametrize("name", TAMPERED)
def test_the_stored_state_of_a_part_is_damaged(
    name: str, runs: tuple[dict, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """There is one warning that names the cause, and the results equal those of a full run."""
    config, folder = runs
    change, what = TAMPERED[name]
    shutil.copytree(folder / "cut", tmp_path / "cut")
    damaged = last(tmp_path / "cut")
    tamper(damaged, change)
    runner.run_experiment(config, tmp_path / "cut")
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {damaged}: this checkpoint is damaged: ")
    assert what in warning and warning.endswith("the run continues from the one before")
    assert (damaged.parent / (damaged.name + DAMAGED)).is_dir()
    assert_same_end(tmp_path / "cut", folder / "whole")


@pytest.mark.ci
def test_a_part_that_checks_nothing(
    runs: tuple[dict, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """A user's callback raises in `import_state`, after everything else has been restored."""
    config, folder = runs
    shutil.copytree(folder / "cut", tmp_path / "cut")
    tamper(last(tmp_path / "cut"), lambda state, _: state["callbacks"]["MetricCallback-1"].clear())
    monkeypatch.setattr(MetricCallback, "check_state", lambda *_: None)
    runner.run_experiment(config, tmp_path / "cut")
    (warning,) = capsys.readouterr().err.splitlines()
    assert "callbacks.MetricCallback-1: cannot be continued from: KeyError: 'loss_sum'" in warning
    assert_same_end(tmp_path / "cut", folder / "whole")


@pytest.mark.ci
def test_a_trackers_state_is_dropped(
    runs: tuple[dict, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The tracker begins anew, with one warning; the run continues from its checkpoint."""
    config, folder = runs
    shutil.copytree(folder / "cut", tmp_path / "cut")
    tamper(last(tmp_path / "cut"), entry("TensorBoardLogger", "rows", "abc"))
    runner.run_experiment(config, tmp_path / "cut")
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: logger tensorboard begins anew") and "rows='abc'" in warning
    assert_same_end(tmp_path / "cut", folder / "whole")


@pytest.mark.ci
def test_all_checkpoints_are_damaged(
    runs: tuple[dict, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The run starts from the beginning, with a warning for each checkpoint."""
    config, folder = runs
    shutil.copytree(folder / "cut", tmp_path / "cut")
    kept = [p for p in (tmp_path / "cut" / FOLDER).iterdir()]
    for path in kept:
        tamper(path, strange_parameter)
    runner.run_experiment(config, tmp_path / "cut")
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(kept) == 2
    assert warnings[-1].endswith("the run continues from the beginning")
    assert_same_end(tmp_path / "cut", folder / "whole")


@pytest.mark.ci
def test_missing_metrics_do_not_invalidate_checkpoints(runs: tuple[dict, Path], tmp_path: Path):
    """No checkpoint would fit, so the run ends with a message and keeps them."""
    config, folder = runs
    shutil.copytree(folder / "cut", tmp_path / "cut")
    (tmp_path / "cut" / "metrics.jsonl").unlink()
    before = good(tmp_path / "cut", config)
    with pytest.raises(ConfigError, match="metrics.jsonl: must be as it was"):
        runner.run_experiment(config, tmp_path / "cut")
    assert good(tmp_path / "cut", config) == before is not None

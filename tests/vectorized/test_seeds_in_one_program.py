"""seeds_strategy=vmap: a run directory like any other, stopped and continued like any other."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reliability.small_runs import config_of

from seqrun.callbacks import Interrupted, InterruptionCallback
from seqrun.runs.runner import run_experiment
from seqrun.runs.seeds import SeedFailed
from seqrun.training.callback import Run

OVERRIDES = ("backend=jax", "algo=naive", "seed=[0,1,2]", "backbone.n_hidden_layers=1")
OVERRIDES += ("training.chunk_steps=4", "seeds_strategy=")


def config(strategy: str, *more: str) -> dict[str, Any]:
    return config_of(*OVERRIDES[:-1], OVERRIDES[-1] + strategy, *more)


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def assert_same_record(one: Path, other: Path) -> None:
    """Raise AssertionError unless two run directories hold the same but for rounding."""
    assert files(one) == files(other)
    a, b = record(one), record(other)
    assert [run["seed"] for run in a["runs"]] == [run["seed"] for run in b["runs"]]
    for mine, theirs in zip(a["runs"], b["runs"], strict=True):
        assert mine["completed"] and mine["accuracy_matrix"] == theirs["accuracy_matrix"]
        losses = [run["train_loss"]["per_task"] for run in (mine, theirs)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    assert a["summary"] == b["summary"] and a["config_hash"] == b["config_hash"]
    for name in (name for name in files(one) if name.endswith("metrics.jsonl")):
        lines = [(place / name).read_text(encoding="utf-8").splitlines() for place in (one, other)]
        for x, y in zip(*lines, strict=True):
            values = json.loads(x), json.loads(y)
            assert values[0].keys() == values[1].keys()
            for key in values[0]:
                np.testing.assert_allclose(values[0][key], values[1][key], rtol=1e-5, atol=1e-6)


@dataclass(kw_only=True, eq=False)
class After(InterruptionCallback):
    """A signal that comes after some chunks, of all runs together."""

    chunks: int = 0

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        self.chunks -= 1
        if self.chunks == 0:
            self._request(signal.SIGTERM, None)
        super().on_after_chunk(run, chunk)


@pytest.mark.ci
def test_interrupted_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every seed saves where it stands; the end is that of seeds one after the other."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_experiment(config("sequential"), whole)
    with pytest.raises(Interrupted):
        run_experiment(config("vmap"), cut, After(chunks=4))
    assert record(cut)["status"] == "interrupted"
    assert {path.parts[-3] for path in cut.glob("seeds/*/checkpoints/*")} == {"0", "1", "2"}
    assert not any(run["completed"] for run in record(cut)["runs"])
    capsys.readouterr()
    run_experiment(config("vmap"), cut)
    told = capsys.readouterr()
    assert told.err.splitlines()[:3] == [
        f"seed {run['seed']}: task 1/2, average accuracy {100 * run['accuracy_matrix'][1][0]:.1f} %"
        for run in record(cut)["runs"]
    ]
    assert not told.out
    assert record(cut)["status"] == "completed"
    assert record(cut)["execution"]["strategy"] == "vmap"
    assert_same_record(cut, whole)


@pytest.mark.ci
@pytest.mark.full
def test_a_seed_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The record says which; the same command tries it alone again."""
    from seqrun.plan import Chunk
    from seqrun.training.trainer import Trainer

    original = Trainer._check_losses

    def refuse(self: Trainer, chunk: Chunk, losses: Any) -> None:
        if self.algorithm.seed == 1:
            raise RuntimeError("the disk is full")
        original(self, chunk, losses)

    monkeypatch.setattr(Trainer, "_check_losses", refuse)
    with pytest.raises(SeedFailed, match="seed 1: RuntimeError: the disk is full"):
        run_experiment(config("vmap"), tmp_path / "cut")
    found = record(tmp_path / "cut")
    assert found["status"] == "failed" and "_check_losses" in found["error"]["traceback"]
    assert [run["completed"] for run in found["runs"]] == [True, False, True]
    monkeypatch.setattr(Trainer, "_check_losses", original)
    run_experiment(config("vmap"), tmp_path / "cut")
    run_experiment(config("sequential"), tmp_path / "whole")
    assert_same_record(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.ci
@pytest.mark.full
def test_groups_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where memory is for two, the third seed is trained after them."""
    from seqrun.runs import vmapped

    monkeypatch.setattr(vmapped, "MAX_RUNS", 2)
    run_experiment(config("vmap"), tmp_path / "two")
    run_experiment(config("sequential"), tmp_path / "one")
    assert_same_record(tmp_path / "two", tmp_path / "one")

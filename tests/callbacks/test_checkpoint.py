"""CheckpointCallback: when a checkpoint is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from experiments import build

from seqrun.callbacks import BaseCallback, CheckpointCallback
from seqrun.records.checkpoint import FOLDER
from seqrun.training.callback import Run


class Clock(BaseCallback):
    """A clock that advances by one minute per chunk."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def on_before_chunk(self, run: Run, chunk: Any) -> None:
        """Advance the clock."""
        self.seconds += 60


@pytest.mark.parametrize(
    ("minutes", "steps"),
    [
        (1.0, [2, 4, 6, 8, 10]),
        (2.5, [6]),  # after 3 minutes; the last two of the 5 chunks take less than 2.5 minutes
        (0.001, [2, 4, 6, 8, 10]),
        (100.0, []),
        (None, []),
    ],
)
def test_every_minutes(
    minutes: float | None, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A checkpoint is saved at the end of the first chunk after that time."""
    clock = Clock()
    module = SimpleNamespace(monotonic=lambda: clock.seconds)
    monkeypatch.setattr("seqrun.callbacks.checkpoint.time", module)
    keeper = CheckpointCallback(every_minutes=minutes, every_task=False, keep=99)
    algorithm = build(
        "naive",
        "torch",
        stream={"num_tasks": 1, "samples_per_task": 100},
        training={"epochs_per_task": 1, "chunk_steps": 2},
        callbacks=[clock, keeper],
    )
    algorithm.run_dir, algorithm.config_hash = tmp_path, "abc"
    algorithm.fit()
    folder = tmp_path / FOLDER
    found = sorted(int(p.name) for p in folder.iterdir()) if folder.is_dir() else []
    assert found == steps

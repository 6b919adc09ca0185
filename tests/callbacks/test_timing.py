"""TimingCallback: its lines; and which callbacks enter the config hash."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from experiments import build
from runs.test_resume import StopAfter, Stopped

from seqrun.callbacks import BaseCallback, CheckpointCallback, TimingCallback
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.records import checkpoint
from seqrun.training.callback import Run


class Sleeps(BaseCallback):
    """Make the second task's first epoch slow."""

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        if (run.task, run.epoch) == (2, 1):
            time.sleep(0.1)


def make(directory: Path, *callbacks: BaseCallback) -> Any:
    stream = {"num_tasks": 2, "samples_per_task": 30}
    callbacks = (TimingCallback(), *callbacks, CheckpointCallback())
    algorithm = build("naive", "torch", callbacks=callbacks, stream=stream)
    algorithm.run_dir, algorithm.config_hash = directory, "abc"
    return algorithm


def lines(directory: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (directory / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    ]


PLACES = ["phase", "task", "epoch", "steps"]
OF_TASKS = [
    ["epoch", 1, 1, 3],
    ["epoch", 1, 2, 3],
    ["task", 1, None, 6],
    ["validation", 1, 2, 0],
    ["epoch", 2, 1, 3],
    ["epoch", 2, 2, 3],
    ["task", 2, None, 6],
    ["validation", 2, 2, 0],
]
START = [["setup", None, None, 0], ["validation", 0, 0, 0]]


def test_lines(tmp_path):
    for _ in range(2):  # the second run overwrites the file
        make(tmp_path, Sleeps()).fit()
    written = lines(tmp_path)
    assert [[line.get(key) for key in PLACES] for line in written] == [
        *START,
        *OF_TASKS,
        ["fit", None, None, 12],
    ]
    seconds = {(s["phase"], s.get("task"), s.get("epoch")): s["seconds"] for s in written}
    assert seconds["epoch", 2, 1] > 0.1  # of sleep
    assert seconds["task", 2, None] >= seconds["epoch", 2, 1] + seconds["epoch", 2, 2]
    assert seconds["fit", None, None] >= seconds["task", 1, None] + seconds["task", 2, None]


def test_a_resumed_run_adds_its_lines(tmp_path):
    with pytest.raises(Stopped):
        make(tmp_path, StopAfter(3)).fit()
    before = lines(tmp_path)
    start, _ = checkpoint.latest(tmp_path, config_hash="abc")
    make(tmp_path).fit(resume_from=start)
    after = lines(tmp_path)
    assert after[: len(before)] == before
    assert [[line.get(key) for key in PLACES] for line in after[len(before) :]] == [
        START[0],
        *OF_TASKS[4:],
        ["fit", None, None, 6],
    ]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "changes"),
    [("early_stopping", True), ("stability_gap", False), ("preview", False), ("timing", False)],
)
def test_what_changes_numbers_changes_the_hash(name, changes):
    given = ("algo=naive", "benchmark.validation_fraction=0.2")
    base = preflight.check(given, CONF)[0].hash
    other = preflight.check((*given, f"callbacks=[metrics,{name}]"), CONF)[0].hash
    assert (other != base) == changes

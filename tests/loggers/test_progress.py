"""TqdmCallback: a bar on a terminal, no output otherwise."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from seqrun.callbacks import TqdmCallback
from seqrun.plan import Chunk
from seqrun.training.options import TrainingOptions


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def run():
    algorithm = SimpleNamespace(
        benchmark=SimpleNamespace(num_tasks=5),
        epochs=TrainingOptions(epochs_per_task=[1, 3, 1, 1, 1]).epochs,
    )
    return SimpleNamespace(total_steps=20, step=0, algorithm=algorithm)


def chunk(steps=10, batch_size=4):
    return Chunk(
        task=2,
        epoch=1,
        first_step=0,
        arrays={"index": np.zeros((steps, batch_size), np.int32)},
        losses=np.full(steps, 0.5, np.float32),
        correct=np.full(steps, 3),
    )


def test_the_bar_shows_task_epoch_loss_accuracy_and_steps(run, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    callback = TqdmCallback()
    callback.on_before_fit(run)
    assert "preparing" in terminal.getvalue()  # compiling can take half a minute
    callback._bar.mininterval = 0
    callback._bar.miniters = 1
    callback.on_after_chunk(run, chunk())
    assert callback._bar.n == 10
    shown = terminal.getvalue()
    for part in ("task 2/5", "epoch 1/3", "loss 0.500", "acc 75.0 %", "10.0/20.0", "steps/s"):
        assert part in shown
    callback.on_before_validation(run)
    assert terminal.getvalue().endswith("\r")  # loggers print on an empty line
    callback.on_before_teardown(run)
    assert callback._bar is None


def test_the_bar_of_a_resumed_run_starts_at_its_step(run, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    run.step = 8
    callback = TqdmCallback()
    callback.on_before_fit(run)
    assert (callback._bar.n, callback._bar.total) == (8, 20)
    callback.on_before_teardown(run)


def test_silent_when_not_a_terminal(run, capsys):
    callback = TqdmCallback()
    callback.on_before_fit(run)
    callback.on_after_chunk(run, chunk())
    callback.on_before_validation(run)
    callback.on_before_teardown(run)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_tqdm_is_not_even_imported_when_not_a_terminal():
    code = (
        "import sys; from seqrun.callbacks import TqdmCallback\n"
        "TqdmCallback().on_before_fit(None); sys.exit('tqdm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0

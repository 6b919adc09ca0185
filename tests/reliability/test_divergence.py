"""A loss or weight that is not finite ends a run: the message, and which checkpoints are left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import build, every_backend
from reliability.small_runs import config_of, good_checkpoints

from seqrun.callbacks import BaseCallback, CheckpointCallback
from seqrun.config.hash import config_hash
from seqrun.records import checkpoint
from seqrun.records.checkpoint import Checkpoint, save
from seqrun.runs import runner
from seqrun.training.callback import Run
from seqrun.training.divergence import TrainingDiverged
from seqrun.training.trainer import Trainer


def set_bias(algorithm: Any, values: Any) -> None:
    """Set the classifier's bias."""
    arrays = algorithm.export_arrays()
    arrays["params/classifier/bias"] = np.full(10, values, np.float32)
    algorithm.import_arrays(arrays)


class Poison(BaseCallback):
    """Make a parameter infinite before the chunk with a given step."""

    def __init__(self, step: int, values: Any = np.inf) -> None:
        self.step, self.values = step, values

    def on_before_chunk(self, run: Run, chunk: Any) -> None:
        """Set the parameter."""
        if chunk.first_step <= self.step < chunk.first_step + chunk.steps:
            set_bias(run.algorithm, self.values)


@pytest.mark.ci
@every_backend
def test_the_first_bad_step_is_named(backend: str, tmp_path: Path):
    """With 9 steps per epoch, task 2 begins at step 18; earlier checkpoints stay valid."""
    poison, keeper = Poison(20), CheckpointCallback(every_steps=2, keep=2)
    training = {"epochs_per_task": 2, "chunk_steps": 2}
    algorithm = build("naive", backend, training=training, callbacks=[poison, keeper])
    algorithm.run_dir, algorithm.config_hash = tmp_path, "abc"
    with pytest.raises(TrainingDiverged, match="at task 2, epoch 1, step 20;"):
        algorithm.fit()
    assert good_checkpoints(tmp_path, "abc") == ["000000018-end", "000000020"]
    assert algorithm.progress.global_step == 20  # later steps do not count


@every_backend
def test_in_the_middle_of_a_chunk(backend: str, tmp_path: Path):
    """With a far too large learning rate; the message names the first step that is not finite."""
    algorithm = build("naive", backend, optimizer_options={"lr": 1e18})
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at task 1, epoch 1, step "):
        algorithm.fit()


@pytest.mark.ci
@every_backend
def test_an_infinite_loss_is_refused(backend: str):
    """A logit of minus infinity for half of the classes makes the mean loss infinite."""
    poison = Poison(20, [-np.inf] * 5 + [0.0] * 5)
    training = {"epochs_per_task": 2, "chunk_steps": 2}
    algorithm = build("naive", backend, training=training, callbacks=[poison])
    with pytest.raises(TrainingDiverged, match="the loss is inf at task 2, epoch 1, step 20;"):
        algorithm.fit()


@pytest.mark.ci
@every_backend
def test_weights_after_the_last_update_are_checked(backend: str, tmp_path: Path):
    """There is one step, and its loss is that of the initial weights."""
    one = {"num_tasks": 1, "samples_per_task": 10}
    far = {"lr": 1e38, "weight_decay": 1e5}
    keeper = CheckpointCallback()
    algorithm = build(
        "naive", backend, stream=one, optimizer_options=far, callbacks=[keeper],
        training={"epochs_per_task": 1},
    )  # fmt: skip
    algorithm.run_dir = tmp_path
    with pytest.raises(TrainingDiverged, match="not finite after task 1, epoch 1, step 0;"):
        algorithm.fit()
    assert np.isnan(algorithm.accuracy_matrix[1]).all()


class PoisonAtTheEnd(BaseCallback):
    """Make a parameter infinite at the end of the second task, or after it."""

    def __init__(self, event: str, value: float) -> None:
        self.event, self.value, self.tasks_seen = event, value, 0

    def on_after_epoch(self, run: Run) -> None:
        """Set the parameter after the last chunk."""
        if self.event == "epoch" and (run.task, run.epoch) == (2, 2):
            set_bias(run.algorithm, self.value)

    def on_after_task(self, run: Run) -> None:
        """Set the parameter after the task, as a consolidating algorithm might."""
        self.tasks_seen += 1
        if self.event == "task" and run.task == 2:
            set_bias(run.algorithm, self.value)


@pytest.mark.ci
@pytest.mark.parametrize(("event", "value"), [("epoch", np.inf), ("task", np.nan)])
@every_backend
def test_weights_at_a_tasks_end(backend: str, event: str, value: float):
    """With 9 steps per epoch, 35 is the last step of the second task's two epochs."""
    poison = PoisonAtTheEnd(event, value)
    algorithm = build("naive", backend, callbacks=[poison])
    with pytest.raises(TrainingDiverged, match="not finite after task 2, epoch 2, step 35;"):
        algorithm.fit()
    assert poison.tasks_seen == (
        1 if event == "epoch" else 2
    )  # nothing is computed from these weights
    measured = ~np.isnan(algorithm.accuracy_matrix).all(1)
    assert measured.tolist() == [True, True, False, False]


@pytest.mark.ci
def test_the_record_says_so(tmp_path: Path):
    """The same command fails in the same way when it is repeated."""
    config = config_of("algo=naive", "optimizer.lr=1e18")
    for _ in range(2):
        with pytest.raises(TrainingDiverged):
            runner.run_experiment(config, tmp_path / "run")
        record = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
        assert record["status"] == "failed"
        assert record["error"]["type"] == "TrainingDiverged"
        assert "task 1, epoch 1, step" in record["error"]["message"]
        good_checkpoints(tmp_path / "run", config_hash(config))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path):
    """Their loss would only show one step later; the valid checkpoint must stay."""
    algorithm = build("naive", "torch")
    algorithm.fit()
    good = Trainer(algorithm).checkpoint()
    bad = Checkpoint({**good.arrays, "params/x": np.array([np.nan])}, good.state)
    assert save(good, tmp_path, config_hash="abc", keep=1) is not None
    later = {**bad.state, "counters": {**bad.state["counters"], "global_step": 10**6}}
    assert save(Checkpoint(bad.arrays, later), tmp_path, config_hash="abc", keep=1) is None
    assert len(good_checkpoints(tmp_path, "abc")) == 1
    found, wrong = checkpoint.latest(tmp_path, config_hash="abc")
    assert found is not None and not wrong


def test_a_matrix_or_a_callback_may_hold_what_was_not_measured(tmp_path: Path):
    """There NaN means not measured."""
    algorithm = build("naive", "torch")
    algorithm.fit()
    whole = Trainer(algorithm).checkpoint()
    arrays = {**whole.arrays, "callback/X-1/trace": np.array([np.nan, np.inf])}
    save(Checkpoint(arrays, whole.state), tmp_path, config_hash="abc")
    found, wrong = checkpoint.latest(tmp_path, config_hash="abc")
    assert found is not None and not wrong
    assert np.isnan(found.arrays["record/accuracy_matrix"]).any()

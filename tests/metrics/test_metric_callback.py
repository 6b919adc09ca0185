"""MetricCallback: the values that it logs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from seqrun.callbacks import MetricCallback
from seqrun.loggers import BaseLogger
from seqrun.plan import Chunk


class Recorder(BaseLogger):
    """Record every call."""

    def __init__(self):
        self.values, self.steps, self.matrices, self.summary = [], [], [], None

    def log(self, values, *, step, epoch, task):
        self.values.append((dict(values), step, epoch, task))

    def log_steps(self, name, values, *, first_step, epoch, task):
        self.steps.append((name, values.tolist(), first_step, epoch, task))

    def log_matrix(self, name, matrix, *, step, task):
        self.matrices.append((name, matrix.copy(), step, task))

    def log_summary(self, metrics):
        self.summary = dict(metrics)


@pytest.fixture
def run():
    benchmark = SimpleNamespace(
        num_tasks=2, evaluation_split="test", task_size=lambda t, split: {1: 100, 2: 300}[t]
    )
    run = SimpleNamespace(
        algorithm=SimpleNamespace(benchmark=benchmark, measured_on="test"),
        loggers=[Recorder(), Recorder()],
        task=1,
        epoch=2,
        step=3,
        matrix=np.full((3, 2), np.nan),
        progress=SimpleNamespace(accuracy_matrix_task_aware=None),
    )
    run.log = lambda values: [
        logger.log(values, step=run.step, epoch=run.epoch, task=run.task) for logger in run.loggers
    ]
    return run


def chunk_of(first_step, batch_size, losses, correct):
    return Chunk(
        task=1,
        epoch=2,
        first_step=first_step,
        arrays={"index": np.zeros((len(losses), batch_size), np.int32)},
        losses=np.array(losses, np.float32),
        correct=np.array(correct),
    )


def test_epoch_means_weigh_a_partial_batch_by_its_samples(run):
    callback = MetricCallback()
    callback.on_before_epoch(run)
    callback.on_after_chunk(run, chunk_of(0, 4, [1.0, 2.0], [1, 3]))
    callback.on_after_chunk(run, chunk_of(2, 1, [6.0], [1]))
    callback.on_after_epoch(run)
    for logger in run.loggers:
        assert logger.steps == [("loss", [1.0, 2.0], 0, 2, 1), ("loss", [6.0], 2, 2, 1)]
        (values, *where), *others = logger.values
        assert values == {
            "train_loss": pytest.approx((4 * 1 + 4 * 2 + 6) / 9),
            "train_accuracy": pytest.approx(5 / 9),
        }
        assert where == [3, 2, 1]
        assert not others


def test_an_epoch_starts_afresh(run):
    callback = MetricCallback()
    for loss in (4.0, 2.0):
        callback.on_before_epoch(run)
        callback.on_after_chunk(run, chunk_of(0, 2, [loss], [0]))
        callback.on_after_epoch(run)
    assert [v["train_loss"] for v, *_ in run.loggers[0].values] == [4.0, 2.0]


def test_rows_are_logged_as_they_are_measured(run):
    callback, logger = MetricCallback(), run.loggers[0]
    callback.on_before_fit(run)
    run.task = 0
    run.matrix[0] = [0.1, 0.2]
    callback.on_after_validation(run)
    run.task = 1
    run.matrix[1] = [0.9, 0.3]
    callback.on_after_validation(run)
    run.task = 2
    run.matrix[2] = [0.5, 0.7]
    callback.on_after_validation(run)
    callback.on_after_fit(run)
    untrained, first, second = (values for values, *_ in logger.values)
    assert untrained == {"accuracy/task_1": 0.1, "accuracy/task_2": 0.2}
    assert first == {  # metrics of the stream so far, which do not include the next task
        "accuracy/task_1": 0.9,
        "accuracy/task_2": 0.3,
        "average_accuracy": 0.9,
        "learning_accuracy": 0.9,
        "average_incremental_accuracy": 0.9,
    }
    assert second["average_accuracy"] == pytest.approx(0.6)
    assert second["average_forgetting"] == pytest.approx(0.4)
    assert second["forward_transfer"] == pytest.approx(0.1)
    pooled = (0.5 * 100 + 0.7 * 300) / 400
    assert second["average_incremental_accuracy"] == pytest.approx((0.9 + pooled) / 2)
    assert [(name, task) for name, _, _, task in logger.matrices] == [
        ("accuracy_matrix", 0),
        ("accuracy_matrix", 1),
        ("accuracy_matrix", 2),
    ]
    assert logger.summary["average_forgetting"] == pytest.approx(0.4)


def test_what_was_not_measured_is_not_logged(run):
    run.matrix[1] = [0.9, np.nan]
    callback = MetricCallback()
    callback.on_before_fit(run)
    callback.on_after_validation(run)
    values = run.loggers[0].values[0][0]
    assert "accuracy/task_2" not in values
    assert "average_forgetting" not in values


def test_task_aware_accuracies_have_names_of_their_own(run):
    run.matrix[1] = [0.4, 0.0]
    run.progress.accuracy_matrix_task_aware = np.full((3, 2), np.nan)
    run.progress.accuracy_matrix_task_aware[1] = [0.8, 0.5]
    callback = MetricCallback()
    callback.on_before_fit(run)
    callback.on_after_validation(run)
    logger = run.loggers[0]
    values = logger.values[0][0]
    assert values["accuracy/task_1"] == 0.4
    assert values["accuracy_task_aware/task_1"] == 0.8
    assert values["average_accuracy_task_aware"] == 0.8
    assert [name for name, *_ in logger.matrices] == [
        "accuracy_matrix",
        "accuracy_matrix_task_aware",
    ]

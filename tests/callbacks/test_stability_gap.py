"""StabilityGapCallback: its metrics, when it measures, and that it does not change training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import build, component, every_backend
from runs.test_resume import StopAfter, Stopped, assert_same_end
from tiny import Linear, TinyBenchmark

from seqrun.algorithms.base import TrainingOptions
from seqrun.callbacks import BaseCallback, CheckpointCallback, MetricCallback, StabilityGapCallback
from seqrun.callbacks.stability_gap import worst_case
from seqrun.checks import ConfigError
from seqrun.loggers import LocalLogger
from seqrun.records import checkpoint
from seqrun.training.callback import Run

NAN = np.nan


def test_metrics_by_hand():
    rows = np.array(
        [
            [0.2, NAN, NAN],  # within task 1: does not count for task 1
            [0.9, NAN, NAN],  # end of task 1
            [0.5, 0.3, NAN],  # the gap of task 1
            [0.8, 0.7, NAN],  # end of task 2
            [0.6, 0.4, 0.1],
            [0.7, 0.6, 0.8],  # end of task 3
        ]
    )
    tasks = np.array([1, 1, 2, 2, 3, 3])
    assert worst_case(rows[:2], tasks[:2], 1) == (None, 0.9)
    minimum, worst = worst_case(rows[:4], tasks[:4], 2)
    assert minimum == 0.5 and worst == pytest.approx(0.7 / 2 + 0.5 / 2)
    minimum, worst = worst_case(rows, tasks, 3)
    assert minimum == pytest.approx((0.5 + 0.4) / 2)
    assert worst == pytest.approx(0.8 / 3 + 2 / 3 * 0.45)


class Snapshots(BaseCallback):
    """Record the parameters after every step."""

    def __init__(self) -> None:
        self.params: list[dict[str, np.ndarray]] = []

    def on_after_optimizer_step(self, run: Run, step: Any) -> None:
        self.params.append({n: p.detach().clone().numpy() for n, p in step.params.items()})


def tiny(backend: str, *callbacks: BaseCallback, run_dir: Path | None = None) -> Any:
    """Return a run of softmax regression: 3 tasks of 2 epochs of 3 steps."""
    kind, _ = component("algo", "naive", backend)
    sgd, keys = component("optimizer", "sgd", backend)
    algorithm = kind(
        benchmark=TinyBenchmark(),
        backbone=Linear(backend=backend),
        optimizer=sgd(**{**keys, "lr": 0.9}),
        training=TrainingOptions(epochs_per_task=2),
        callbacks=list(callbacks),
        device="cpu",
        run_dir=run_dir,
    )
    algorithm.fit()
    return algorithm


@pytest.mark.ci
@every_backend
def test_every_step_is_measured(backend, tmp_path):
    """Compared with accuracies of the parameters that another run recorded after each step."""
    gap, snapshots = StabilityGapCallback(every_steps=1), Snapshots()
    algorithm = tiny(backend, gap, run_dir=tmp_path)
    tiny("torch", snapshots)
    record = json.loads((tmp_path / "stability_gap.json").read_text(encoding="utf-8"))
    within = [
        p for p in range(len(record["steps"])) if p % 7 < 6
    ]  # every seventh row is one of the matrix
    assert [record["steps"][p] for p in within] == list(range(1, 19))
    assert [record["tasks"][p] for p in within] == [1] * 6 + [2] * 6 + [3] * 6
    for place, params in zip(within, snapshots.params, strict=True):
        for task in (1, 2, 3):
            measured = record["accuracy"][place][task - 1]
            if task > record["tasks"][place]:
                assert measured is None
                continue
            data = algorithm.benchmark.task_data(task, "test")
            kernel = params["classifier/kernel"].reshape(3, 2).T  # torch's layout is (out, in)
            logits = data.x.reshape(-1, 2) / 255 @ kernel + params["classifier/bias"]
            assert measured == pytest.approx((logits.argmax(1) == data.y).mean())
    ends = [record["accuracy"][p] for p in (6, 13, 20)]
    matrix = algorithm.accuracy_matrix
    assert ends[2] == matrix[3].tolist() and ends[0][0] == matrix[1, 0]
    every = np.array(record["accuracy"], float)
    lowest = [every[7:, 0].min(), every[14:, 1].min()]
    assert record["min_accuracy"][2] == pytest.approx(np.mean(lowest))
    expected = matrix[3, 2] / 3 + 2 / 3 * np.mean(lowest)
    assert record["worst_case_accuracy"][2] == pytest.approx(expected)


@pytest.mark.ci
@pytest.mark.parametrize(("backend", "every"), [("torch", 1), ("torch", 7), ("jax", 4)])
def test_steps_are_multiples_wherever_chunks_end(backend, every):
    gap = StabilityGapCallback(every_steps=every)
    spec = {"stream": {"num_tasks": 2, "samples_per_task": 85}, "training": {"chunk_steps": 3}}
    algorithm = build("naive", backend, callbacks=[gap], **spec)
    algorithm.fit()
    of_matrix = [18, 36]  # 2 epochs of 9 steps a task
    assert sorted(gap._steps) == sorted([*of_matrix, *range(every, 37, every)])


@pytest.mark.parametrize(
    ("algo", "backend"),
    [
        ("er", "torch"),
        pytest.param("er", "jax", marks=pytest.mark.full),
        pytest.param("mcsgd", "torch", marks=pytest.mark.full),
        pytest.param("mcsgd", "jax", marks=pytest.mark.full),
    ],
)
def test_looking_changes_no_bit(backend, algo):
    spec = {"training": {"epochs_per_task": 1, "chunk_steps": 4}, "backbone": {"dropout": 0.2}}
    spec["stream"] = {"num_tasks": 2, "samples_per_task": 85}
    runs = []
    for callbacks in ([], [StabilityGapCallback(every_steps=3)]):
        losses = Losses()
        algorithm = build(algo, backend, callbacks=[losses, *callbacks], **spec)
        algorithm.fit()
        runs.append((algorithm, np.concatenate(losses.losses)))
    (plain, plain_losses), (looked, looked_losses) = runs
    assert plain_losses.tobytes() == looked_losses.tobytes()
    arrays = looked.export_arrays()
    for name, value in plain.export_arrays().items():
        assert arrays[name].tobytes() == value.tobytes(), name
    np.testing.assert_array_equal(plain.accuracy_matrix, looked.accuracy_matrix)
    assert looked.progress.timing["eval_seconds"] > 0


class Losses(BaseCallback):
    """Record every chunk's losses."""

    def __init__(self) -> None:
        self.losses: list[np.ndarray] = []

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        self.losses.append(chunk.losses)


def make(directory: Path, stop_after: int | None) -> Any:
    callbacks = [MetricCallback(), StabilityGapCallback(every_steps=3)]
    callbacks.append(CheckpointCallback(every_steps=1))
    if stop_after is not None:
        callbacks.append(StopAfter(stop_after))
    spec = {"stream": {"samples_per_task": 60}, "training": {"chunk_steps": 4}}
    algorithm = build("naive", "torch", callbacks=callbacks, **spec)
    algorithm.run_dir, algorithm.config_hash = directory, "abc"
    algorithm.loggers = [LocalLogger(figures=False)]
    return algorithm


@pytest.mark.ci
def test_a_resumed_run_measures_the_same(tmp_path):
    whole = make(tmp_path / "whole", None)
    whole.fit()
    for stop in (1, 2, 0):
        start, _ = checkpoint.latest(tmp_path / "cut", config_hash="abc")
        with pytest.raises(Stopped):
            make(tmp_path / "cut", stop).fit(resume_from=start)
    start, _ = checkpoint.latest(tmp_path / "cut", config_hash="abc")
    run = make(tmp_path / "cut", None)
    run.fit(resume_from=start)
    assert_same_end(run, whole)
    for name in ("stability_gap.json", "figures/stability_gap.png"):
        assert (run.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes()


def test_training_on_all_tasks_at_once_is_refused():
    """In one line, before any training: no task ends before another begins."""
    gap = StabilityGapCallback()
    message = "algo=joint: must train on every task in turn with callbacks.stability_gap"
    with pytest.raises(ConfigError, match=message) as refused:
        build("joint", "torch", callbacks=[gap], mode="all_at_once")
    assert "\n" not in str(refused.value)
    build("joint", "torch", callbacks=[gap])
    build("naive", "torch", callbacks=[gap], stream={"num_tasks": 1})


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("algo", ["icarl", "mcsgd"])
def test_the_gap_is_of_the_model_in_training(backend, algo):
    """Accuracies within a task move, and the task's own classes can be predicted."""
    gap = StabilityGapCallback(every_steps=2)
    spec = {"training": {"epochs_per_task": 2}}
    lr = 0.3 if algo == "mcsgd" else 0.05  # accuracies must move within a few steps
    build(algo, backend, callbacks=[gap], optimizer_options={"lr": lr}, **spec).fit()
    rows, tasks = np.array(gap._rows), np.array(gap._tasks)
    for task in (2, 3):
        own = rows[tasks == task, task - 1][:-1]  # without the row of the matrix
        assert len(set(own)) > 2 and own[-1] > 0


def test_bad_arguments():
    with pytest.raises(ConfigError, match="every_steps=0: must be an integer >= 1"):
        StabilityGapCallback(every_steps=0)

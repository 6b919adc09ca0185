"""Joint: its training data, its initial weights, and which rows of the matrix it measures."""

from __future__ import annotations

import numpy as np
import pytest
from algorithms.side_effects import jax_in_full
from algorithms.task_ends import TaskRecorder, part
from comparison import assert_same_arrays, assert_same_run
from experiments import BACKENDS, build, run, shared_run

from seqrun.checks import ConfigError
from seqrun.evaluation.metrics import compute_metrics

ONCE = {"mode": "all_at_once"}


@jax_in_full
def test_cumulative_sees_every_sample_of_the_tasks_so_far(backend: str):
    """Once per epoch, and none of later tasks."""
    tasks = TaskRecorder()
    algorithm = run("joint", backend, callbacks=[tasks]).algorithm
    for task, seen in enumerate(tasks.seen, 1):
        # 2 epochs over 85 samples a task
        assert np.array_equal(np.bincount(seen), np.full(85 * task, 2))
    data = algorithm.benchmark.cumulative_data(3)
    for field, stored in zip(data, algorithm.replay_dataset, strict=True):
        assert np.array_equal(field, stored)
    assert algorithm.progress.samples_seen == 2 * 85 * (1 + 2 + 3)
    assert algorithm.progress.global_step == algorithm.engine.total_steps == 2 * (9 + 17 + 26)


@jax_in_full
def test_all_at_once_trains_on_the_whole_stream(backend: str):
    """Only the untrained and the last row are measured; metrics that need other rows are null."""
    tasks = TaskRecorder()
    trace = run("joint", backend, callbacks=[tasks], **ONCE)
    (seen,) = tasks.seen
    assert np.array_equal(np.bincount(seen), np.full(3 * 85, 2))
    assert np.array_equal(np.unique(trace.algorithm.replay_dataset.t), [0, 1, 2])
    measured = ~np.isnan(trace.matrix)
    assert measured[[0, 3]].all() and not measured[1:3].any()
    metrics = compute_metrics(trace.matrix)
    assert metrics["average_accuracy"] == trace.matrix[3].mean()
    assert metrics["average_forgetting"] is metrics["learning_accuracy"] is None
    assert len(trace.algorithm.progress.task_losses) == 1
    assert trace.algorithm.progress.global_step == trace.algorithm.engine.total_steps == 2 * 26


@jax_in_full
def test_from_scratch_resets_every_task(backend: str):
    """Weights, statistics and optimizer are reset; otherwise training continues."""
    spec = {
        "backbone": {"batch_norm": True},
        "optimizer_options": {"lr": 0.01, "momentum": 0.9},
        "training": {"epochs_per_task": 1, "reinit_optimizer": "never"},
    }
    fresh, continued = TaskRecorder(), TaskRecorder()
    run("joint", backend, callbacks=[fresh], from_scratch=True, **spec)
    run("joint", backend, callbacks=[continued], **spec)
    for start in fresh.starts:
        assert_same_arrays(start, fresh.starts[0], 0.0)
    for start, end in zip(continued.starts[1:], continued.ends, strict=False):
        assert_same_arrays(start, end, 0.0)
    assert_same_arrays(fresh.ends[0], continued.ends[0], 0.0)
    assert (
        abs(fresh.ends[2]["stats/norm_0/mean"] - continued.ends[2]["stats/norm_0/mean"]).max() > 0
    )


def test_from_scratch_ends_where_all_at_once_does():
    """To the bit: its last task trains on the whole stream."""
    scratch = run("joint", "torch", from_scratch=True)
    once = run("joint", "torch", **ONCE)
    assert_same_arrays(scratch.arrays, once.arrays, 0.0)
    assert np.array_equal(scratch.matrix[3], once.matrix[3])


def test_first_task_is_naive():
    """To the bit."""
    joint, naive = shared_run("joint", "torch"), shared_run("naive", "torch")
    first = len(naive.losses) // 3
    assert np.array_equal(joint.losses[:first], naive.losses[:first])
    assert abs(joint.losses[first : 2 * first] - naive.losses[first : 2 * first]).max() > 1e-3


def test_all_at_once_has_the_first_tasks_learning_rate():
    """Decay from task to task does not apply to a single run."""
    training = {"lr_decay": 0.5, "epochs_per_task": 1}
    tasks, once, first = TaskRecorder(), TaskRecorder(), TaskRecorder()
    run("joint", "torch", callbacks=[tasks], training=training)
    run("joint", "torch", callbacks=[once], training=training, **ONCE)
    decayed = training | {"decay_first_task": True}
    run("joint", "torch", callbacks=[first], training=decayed, **ONCE)
    assert [h["lr"] for h in tasks.hparams] == [0.05, 0.025, 0.0125]
    assert [h["lr"] for h in once.hparams] == [0.05]
    assert [h["lr"] for h in first.hparams] == [0.025]


CLASS = {"benchmark": "split_digits", "stream": {"scenario": "class"}}
TASK = {"benchmark": "split_digits", "stream": {"scenario": "task"}}


@pytest.mark.ci
@pytest.mark.parametrize(
    "spec",
    [
        ONCE,
        {"from_scratch": True},
        pytest.param(ONCE | CLASS, marks=pytest.mark.full),
        pytest.param(ONCE | TASK, marks=pytest.mark.full),
        pytest.param({"from_scratch": True} | CLASS, marks=pytest.mark.full),
    ],
    ids=["once", "scratch", "once_class", "once_task", "scratch_class"],
)
def test_twins_agree(spec: dict):
    """At every step and in every field."""
    by_torch, by_jax = (run("joint", backend, stepped=True, **spec) for backend in BACKENDS)
    assert_same_run(by_jax, by_torch, 1e-5)


@pytest.mark.ci
def test_one_compiled_program_serves_all_tasks():
    """Whatever the size of the data; batches are all of one size here."""
    algorithm = run("joint", "jax", stream={"samples_per_task": 80}).algorithm
    assert len([key for key in algorithm.engine._programs if key[0] == "chunk"]) == 1


@pytest.mark.ci
def test_joint_is_above_naive():
    """By a large margin, in the mean over tasks."""
    spec = {"training": {"epochs_per_task": 15}, "optimizer_options": {"lr": 0.1}}
    naive, joint = (run(algo, "torch", **spec).matrix[3].mean() for algo in ("naive", "joint"))
    assert joint > naive + 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "cumulativ"}, "mode='cumulativ'.*did you mean cumulative"),
        ({"from_scratch": 1}, "from_scratch=1"),
        ({"from_scratch": True, **ONCE}, "from_scratch=True: must be false with mode=all_at_once"),
        (
            {"training": {"epochs_per_task": [1, 2, 1]}, **ONCE},
            r"training.epochs_per_task=\[1, 2, 1\]: must be one integer with mode=all_at_once",
        ),
    ],
)
def test_refusals(options: dict, message: str):
    """They name the key, the value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        build("joint", "torch", **options)


def test_every_task_of_the_union_keeps_its_own_classes():
    """With one head per task, a sample's softmax runs over its own task's classes."""
    algorithm = run("joint", "torch", **ONCE, **TASK).algorithm
    assert np.array_equal(algorithm.training_mask(), algorithm.benchmark.class_mask)
    assert part(algorithm.export_arrays(), "params/")["classifier/bias"].shape == (10,)

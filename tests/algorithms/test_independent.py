"""Independent: a fresh model per task, each task evaluated with its own."""

from __future__ import annotations

import numpy as np
import pytest
from algorithms.side_effects import jax_in_full
from algorithms.task_ends import TaskRecorder, imported, part
from comparison import assert_same_arrays, assert_same_run
from experiments import BACKENDS, build, run, shared_run

from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError

# With these options every kind of state would show if a model inherited it.
SETTING = {
    "backbone": {"batch_norm": True},
    "optimizer_options": {"lr": 0.01, "momentum": 0.9},
    "training": {"epochs_per_task": 5, "reinit_optimizer": "never", "evaluate_on": "all"},
}


@jax_in_full
def test_every_task_starts_from_the_initial_state_and_is_stored(backend: str):
    """Weights, statistics and optimizer; a stored model never changes again."""
    tasks = TaskRecorder()
    run("independent", backend, callbacks=[tasks], **SETTING)
    for start in tasks.starts:
        for group in ("params/", "stats/", "optimizer/"):
            assert_same_arrays(part(start, group), part(tasks.starts[0], group), 0.0)
    for later, end in enumerate(tasks.ends, 1):
        for task in (1, 2, 3):
            made = tasks.ends[task - 1] if task <= later else tasks.starts[0]
            for group in ("params", "stats"):
                kept = part(end, f"kept/{group}/{task}/")
                assert_same_arrays(kept, part(made, f"{group}/"), 0.0)
    values = [end["params/classifier/kernel"] for end in tasks.ends]
    assert abs(values[0] - values[1]).max() > 1e-3 < abs(values[1] - values[2]).max()


@jax_in_full
def test_each_task_is_evaluated_with_its_own_model(backend: str):
    """Untrained before the task, and unchanged after it."""
    matrix = run("independent", backend, **SETTING).matrix
    for task in (1, 2, 3):
        assert (matrix[:task, task - 1] == matrix[0, task - 1]).all()
        assert (matrix[task:, task - 1] == matrix[task, task - 1]).all()
        assert matrix[task, task - 1] > matrix[0, task - 1] + 0.2


@pytest.mark.ci
@pytest.mark.parametrize("decay_first_task", [False, True])
@jax_in_full
def test_every_task_trains_at_the_full_learning_rate(backend: str, decay_first_task: bool):
    """Each task's model is that of a run without decay, to the bit."""
    decayed = SETTING["training"] | {"lr_decay": 0.3, "decay_first_task": decay_first_task}
    with_decay = run("independent", backend, **SETTING | {"training": decayed})
    plain = run("independent", backend, **SETTING)
    assert_same_arrays(with_decay.arrays, plain.arrays, 0.0)
    assert np.array_equal(with_decay.losses, plain.losses)


def test_first_task_is_naive():
    """To the bit."""
    own, naive = shared_run("independent", "torch"), shared_run("naive", "torch")
    first = len(naive.losses) // 3
    assert np.array_equal(own.losses[:first], naive.losses[:first])
    assert np.array_equal(own.matrix[1], naive.matrix[1], equal_nan=True)


@jax_in_full
def test_the_current_task_is_evaluated_with_the_model_in_training(backend: str):
    """After every epoch, while other tasks are evaluated with their own models."""

    class Watch(BaseCallback):
        rows = []

        def on_after_validation(self, run):
            self.rows.append((run.task, run.epoch, run.matrix.copy()))

    watch = Watch()
    training = SETTING["training"] | {"evaluate_every": "epoch"}
    watch.rows.clear()
    run("independent", backend, callbacks=[watch], **SETTING | {"training": training})
    second = [matrix[2] for task, _, matrix in watch.rows if task == 2]
    assert len(second) == 5
    assert len({row[1] for row in second}) > 2
    assert len({row[0] for row in second}) == len({row[2] for row in second}) == 1


@pytest.mark.full
@pytest.mark.parametrize(
    "spec",
    [
        SETTING,
        pytest.param(
            {"benchmark": "split_digits", "stream": {"scenario": "task"}}, marks=pytest.mark.full
        ),
    ],
    ids=["batch_norm", "task"],
)
def test_twins_agree(spec: dict):
    """At every step, in every stored model and in the accuracy matrix."""
    by_torch, by_jax = (run("independent", backend, stepped=True, **spec) for backend in BACKENDS)
    tolerance = 1e-4 if "backbone" in spec else 1e-5  # see tests/parity/cases.py
    assert_same_run(by_jax, by_torch, tolerance)


@pytest.mark.ci
@pytest.mark.parametrize(("written", "read"), [BACKENDS, BACKENDS[::-1]])
def test_models_can_be_imported_on_either_backend(written: str, read: str):
    """What one backend exports, the other imports and exports unchanged."""
    trace = run("independent", written, **SETTING)
    assert_same_arrays(imported("independent", read, trace.arrays, **SETTING), trace.arrays, 0.0)


def test_class_incremental_streams_are_refused():
    """Their task is unknown at test time."""
    with pytest.raises(ConfigError, match="benchmark.scenario='class': must be task or domain"):
        build("independent", "torch", benchmark="split_digits", stream={"scenario": "class"})

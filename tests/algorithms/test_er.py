"""ER: every step on batch and memory by hand, and every option."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from algorithms.replay_by_hand import (
    SETTING,
    HandStep,
    assert_steps_as_by_hand,
    mean_gradient,
    mean_loss,
    tiny_run,
)
from comparison import assert_close, assert_same_arrays, assert_same_run
from experiments import (
    BACKENDS,
    algorithm_class,
    build,
    every_backend,
    jax_in_full,
    run,
    shared_run,
)

from seqrun.checks import ConfigError

SPEC = SETTING | {"memory_size": 60}


@jax_in_full
def test_every_step_is_as_by_hand(backend: str):
    """The mean over the concatenation: 3 + 2 samples have weight 1/5 each, 3 samples 1/3."""

    def rule(step: HandStep):
        pairs = zip(step.batch, step.batches["replay"], strict=False)
        x, y = (np.concatenate(pair) for pair in pairs)
        return mean_loss(step.w, x, y), mean_gradient(step.w, x, y)

    trace = tiny_run("er", backend, memory_size=5, memory_batch_size=2)
    assert_steps_as_by_hand(trace, rule)
    replayed = [len(row["replay"]) for row in trace.plan.rows]
    assert replayed == [0] + [2] * (len(replayed) - 1)
    plans = zip(trace.plan.rows, trace.plan.datasets, trace.plan.tasks, strict=True)
    past = np.concatenate([dataset.t[row["replay"]] < task - 1 for row, dataset, task in plans])
    assert past.any() and not past.all()


@jax_in_full
def test_memory_weight_is_as_by_hand(backend: str):
    """(1 - w) CE(batch) + w CE(memory); CE(batch) while the memory is empty."""

    def rule(step: HandStep):
        x, y, _ = step.batches["replay"]
        loss = mean_loss(step.w, *step.batch)
        if not len(y):
            return loss, step.gradient
        replay = mean_gradient(step.w, x, y)
        total = {n: 0.7 * g + 0.3 * replay[n] for n, g in step.gradient.items()}
        return 0.7 * loss + 0.3 * mean_loss(step.w, x, y), total

    options = {"memory_weight": 0.3, "memory_size": 5, "memory_batch_size": 4}
    assert_steps_as_by_hand(tiny_run("er", backend, **options), rule)


@pytest.mark.ci
@jax_in_full
def test_reduces_to_naive_with_an_empty_memory(backend: str):
    """To the bit on PyTorch; with a memory it differs."""

    @dataclass(kw_only=True, eq=False)
    class Forgetful(algorithm_class("er", backend)):
        def plan_epoch(self, task, epoch, num_samples):
            parts = super().plan_epoch(task, epoch, num_samples)
            return [part | {"replay": part["replay"][:, :0]} for part in parts]

    naive = shared_run("naive", backend, **SETTING)
    empty = run("er", backend, kind=Forgetful, **SPEC)
    tolerance = 0.0 if backend == "torch" else 1e-5
    assert_close("losses", empty.losses, naive.losses, tolerance)
    kept = {n: a for n, a in empty.arrays.items() if n in naive.arrays}
    assert_same_arrays(kept, naive.arrays, tolerance)
    assert (empty.matrix == naive.matrix)[~np.isnan(naive.matrix)].all()
    full = shared_run("er", backend, **SPEC)
    assert abs(full.losses[1:] - naive.losses[1:]).max() > 1e-2


@pytest.mark.parametrize(
    "option",
    [
        {"memory_size": 20},
        {"memory_batch_size": 3},
        {"memory_weight": 0.3},
        {"observe": "every_epoch"},
        {"rehearsal": "shuffled"},
    ],
)
def test_options_matter(option: dict):
    """A run with the option differs."""
    shipped, changed = (shared_run("er", "torch", **SPEC | o) for o in ({}, option))
    steps = min(len(shipped.losses), len(changed.losses))
    assert abs(shipped.losses[:steps] - changed.losses[:steps]).max() > 1e-3


@pytest.mark.ci
def test_twins_agree_on_the_options():
    """The loss of every step, and every field of the memory."""
    options = {"memory_weight": 0.4, "observe": "every_epoch"}
    by_torch, by_jax = (shared_run("er", b, **SPEC, **options) for b in BACKENDS)
    assert {"memory/x", "memory/y", "memory/t", "memory/seen"} <= set(by_torch.arrays)
    assert_same_run(by_jax, by_torch, 1e-5)


def planned_epochs(algorithm) -> list[tuple[int, np.ndarray, int]]:
    """Return (task, rows that the epoch reads in order, samples of the task) of each epoch."""
    epochs: list[tuple[int, np.ndarray, int]] = []
    inner = algorithm.plan_epoch

    def plan_epoch(task: int, epoch: int, num_samples: int):
        parts = inner(task, epoch, num_samples)
        order = np.concatenate([part["index"].ravel() for part in parts])
        epochs.append((task, order, num_samples))
        return parts

    algorithm.plan_epoch = plan_epoch
    algorithm.fit()
    return epochs


@pytest.mark.parametrize(("memory_size", "copies"), [(10, 4), (30, 1), (60, 1)])
def test_shuffled_rehearsal(memory_size: int, copies: int):
    """Epochs read 45 samples once, each stored one max(1, 45 // memory_size) times, shuffled."""
    spec = {"benchmark": "split_digits", "training": {"epochs_per_task": 2}}
    options = {"rehearsal": "shuffled", "memory_size": memory_size}
    algorithm = build("er", "torch", **spec, **options)
    epochs = planned_epochs(algorithm)
    assert len(epochs) == 10
    for task, order, size in epochs:
        filled = 0 if task == 1 else min(memory_size, 45 * (task - 1))
        counts = np.bincount(order, minlength=size + filled)
        assert size == 45 and len(order) == size + filled * copies
        assert (counts[:size] == 1).all() and (counts[size:] == copies).all()
        if filled:
            assert (np.diff(order) < 0).sum() > len(order) / 4  # shuffled
        assert algorithm.training_size(task) == len(order)
    assert algorithm.progress.global_step == algorithm.engine.total_steps
    assert set(algorithm.memory.data.t) == {0, 1, 2, 3, 4}
    assert algorithm.memory.filled == min(memory_size, 225)
    one, other = epochs[2:4]
    assert (one[1] != other[1]).any()


@pytest.mark.ci
def test_twins_agree_on_shuffled_rehearsal():
    """Every step and field, with partial last batches."""
    options = {"rehearsal": "shuffled", "memory_size": 20, "benchmark": "split_digits"}
    by_torch, by_jax = (run("er", b, **options) for b in BACKENDS)
    assert_same_run(by_jax, by_torch, 1e-5)


@pytest.mark.ci
@every_backend
def test_memory_is_counted_and_within_its_budget(backend: str):
    """60 of 200 samples, with 64 + 4 + 4 bytes each."""
    algorithm = shared_run("er", backend, **SPEC).algorithm
    assert algorithm.memory.seen == 200
    assert algorithm.memory.filled == 60
    assert algorithm.progress.memory_bytes == 60 * 72
    assert set(algorithm.memory.data.t) == {0, 1, 2, 3, 4}


@every_backend
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"memory_size": 0}, "memory_size=0: must be an integer >= 1"),
        ({"memory_batch_size": 0}, "memory_batch_size=0: must be an integer >= 1"),
        ({"memory_weight": 1.5}, r"memory_weight=1.5: must be a number in \[0, 1\]"),
        ({"rehearsal": "shuffle"}, "rehearsal='shuffle': must be one of .*did you mean shuffled"),
        (
            {"rehearsal": "shuffled", "memory_weight": 0.5},
            "memory_weight=0.5: must be null with rehearsal=shuffled",
        ),
        ({"observe": "first"}, "observe='first': must be one of .*did you mean first_epoch"),
    ],
)
def test_refuses(backend: str, option: dict, message: str):
    """Values out of range."""
    with pytest.raises(ConfigError, match=message):
        build("er", backend, **option)

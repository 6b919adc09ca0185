"""MemoryCallback: it stores, next to any algorithm, what a replay method would have stored."""

from __future__ import annotations

import numpy as np
import pytest
from experiments import build, run

from seqrun.callbacks import BaseCallback, MemoryCallback
from seqrun.checks import ConfigError
from seqrun.memory import MemoryMechanism
from seqrun.training.callback import Run


@pytest.mark.parametrize(
    ("algo", "options", "spec"),
    [
        ("er", {"memory_size": 50}, {"policy": "reservoir", "memory_size": 50}),
        (
            "er",
            {"memory_size": 50, "observe": "every_epoch", "memory_batch_size": 3},
            {"policy": "reservoir", "memory_size": 50, "observe": "every_epoch"},
        ),
        (
            "agem",
            {"per_task_memory_samples": 12},
            {"policy": "ring", "per_task_memory_samples": 12},
        ),
        (
            "agem",
            {"per_task_memory_samples": 12, "memory_policy": "random"},
            {"policy": "random", "per_task_memory_samples": 12},
        ),
    ],
)
def test_callback_stores_what_a_replay_method_stores(algo: str, options: dict, spec: dict):
    memory = MemoryMechanism(**spec)
    training = {"epochs_per_task": 2, "chunk_steps": 3}
    observed = run("naive", "torch", callbacks=[MemoryCallback(memory)], training=training)
    replayed = run(algo, "torch", **options).algorithm.memory
    assert memory.seen == replayed.seen
    for ours, theirs in zip(memory.data, replayed.data, strict=True):
        assert np.array_equal(ours, theirs)
    assert observed.algorithm.progress.memory_bytes == 0


def test_callback_refuses_herding():
    with pytest.raises(ConfigError, match="policy='herding'"):
        MemoryCallback(MemoryMechanism(policy="herding", memory_size=5))


@pytest.mark.parametrize(
    ("algo", "message"),
    [
        ("icarl", "samples of the current task"),
        ("joint", "the current task only"),
        ("lamaml", "algo.glances=5"),
    ],
)
def test_callback_refuses_other_kinds_of_batches(algo: str, message: str):
    """Batches that contain exemplars or samples of earlier tasks, or that are repeated."""
    memory = MemoryMechanism(policy="reservoir", memory_size=50)
    with pytest.raises(ConfigError, match=message):
        build(algo, "torch", callbacks=[MemoryCallback(memory)])


class Returning(BaseCallback):
    """Train three epochs and go back to the first."""

    def on_after_epoch(self, run: Run) -> None:
        if run.epoch == 3:
            run.return_to_epoch(1, {})


@pytest.mark.parametrize("policy", ["reservoir", "ring", "class_balanced", "random"])
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_epochs_that_do_not_count_are_not_stored(policy: str, first: bool):
    """As early stopping returns to its best epoch; wherever the callback stands in the list."""
    size = {"per_task_memory_samples": 12} if policy == "ring" else {"memory_size": 20}
    long, short = (MemoryMechanism(policy=policy, observe="every_epoch", **size) for _ in range(2))
    callbacks = [MemoryCallback(long), Returning()]
    run(
        "naive",
        "torch",
        callbacks=callbacks[:: 1 if first else -1],
        training={"epochs_per_task": 3},
    )
    run("naive", "torch", callbacks=[MemoryCallback(short)], training={"epochs_per_task": 1})
    assert long.seen == short.seen
    for ours, theirs in zip(long.data, short.data, strict=True):
        assert np.array_equal(ours, theirs)

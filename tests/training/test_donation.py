"""On JAX each chunk overwrites its input arrays, except those that other code holds."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from experiments import build

from seqrun.callbacks import BaseCallback
from seqrun.training.callback import Run

ONE_STEP = {"chunk_steps": 1}


class Watcher(BaseCallback):
    """Keep a run's arrays, read through the public property or through a private attribute."""

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.before: list[Any] = []
        self.deleted: list[bool] = []

    def on_before_chunk(self, run: Run, chunk: Any) -> None:
        carry = run.algorithm.engine.carry if self.reads else run.algorithm.engine._carry
        self.held = jax.tree.leaves(carry.params)
        self.before.append([np.array(a) for a in self.held] if self.reads else None)

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        self.deleted.append(all(array.is_deleted() for array in self.held))
        if self.reads:
            for array, values in zip(self.held, self.before[-1], strict=True):
                np.testing.assert_array_equal(array, values)


def trained(callback: Watcher, network: str = "mlp", algo: str = "naive") -> Any:
    algorithm = build(algo, "jax", network=network, training=ONE_STEP, callbacks=[callback])
    algorithm.fit()
    return algorithm


@pytest.mark.ci
@pytest.mark.parametrize("network", ["mlp", "cnn"])  # one call per chunk; one call per step
def test_a_chunk_overwrites_its_input(network):
    callback = Watcher(reads=False)
    trained(callback, network)
    # Hooks and checkpoints have read the input of each task's first chunk.
    assert callback.deleted.count(True) > len(callback.deleted) / 2


@pytest.mark.ci
def test_arrays_that_were_read_are_not_overwritten():
    callback = Watcher(reads=True)
    trained(callback)
    assert callback.deleted and not any(callback.deleted)


@pytest.mark.ci
@pytest.mark.parametrize("algo", ["naive", "ewc", pytest.param("lfl", marks=pytest.mark.full)])
def test_reading_changes_no_bit(algo):
    runs = [trained(Watcher(reads=reads), algo=algo) for reads in (True, False)]
    first, second = (run.export_arrays() for run in runs)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])

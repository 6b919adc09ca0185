"""A new replay method only defines the budget and policy of its memory, on either backend."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
from experiments import every_backend, jax_in_full, run, shared_run

from seqrun.memory import MemoryMechanism

BUDGETS = {
    "reservoir": {"memory_size": 30},
    "ring": {"per_task_memory_samples": 10},
    "class_balanced": {"memory_size": 30},
    "random": {"memory_size": 30},
    "herding": {"memory_size": 30},
}


def method(backend: str, policy: str) -> type:
    """Return a replay method that defines only its memory."""
    parent = import_module(f"seqrun.algorithms.replay.{backend}").ReplayAlgorithm

    @dataclass(kw_only=True, eq=False)
    class NewMethod(parent):
        name = "new"

        def make_memory(self) -> MemoryMechanism:
            return MemoryMechanism(policy=policy, **BUDGETS[policy])

    return NewMethod


@pytest.mark.ci
@jax_in_full
@pytest.mark.parametrize("policy", BUDGETS)
def test_a_method_with_every_policy(backend: str, policy: str):
    """It trains, replays samples of past tasks and stays within its budget."""
    spec = {"training": {"epochs_per_task": 1}}
    trace = run("naive", backend, kind=method(backend, policy), **spec)
    algorithm = trace.algorithm
    assert 0 < algorithm.memory.filled <= 30
    assert set(algorithm.memory.data.t) == {0, 1, 2}
    assert abs(trace.losses - shared_run("naive", backend, **spec).losses)[-9:].max() > 1e-3


@pytest.mark.ci
@every_backend
def test_with_a_reservoir_it_equals_er(backend: str):
    """The default loss is that of ER."""
    new = run("naive", backend, kind=method(backend, "reservoir"))
    er = run("er", backend, memory_size=30)
    np.testing.assert_array_equal(new.losses, er.losses)

"""A new replay method states its memory's budget and policy alone, on either backend."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
from experiments import every_backend, run, shared_run

from seqrun.memory import MemoryMechanism

BUDGETS = {
    "reservoir": {"memory_size": 30},
    "ring": {"per_task_memory_samples": 10},
    "class_balanced": {"memory_size": 30},
    "random": {"memory_size": 30},
    "herding": {"memory_size": 30},
}


def method(backend: str, policy: str) -> type:
    """Return a replay method that is its memory."""
    parent = import_module(f"seqrun.algorithms.replay.{backend}").ReplayAlgorithm

    @dataclass(kw_only=True, eq=False)
    class Mine(parent):
        name = "mine"

        def make_memory(self) -> MemoryMechanism:
            return MemoryMechanism(policy=policy, **BUDGETS[policy])

    return Mine


@every_backend
@pytest.mark.parametrize("policy", BUDGETS)
def test_every_policy_makes_a_method(backend: str, policy: str):
    """It trains, replays past tasks and keeps its budget."""
    spec = {"training": {"epochs_per_task": 1}}
    trace = run("naive", backend, kind=method(backend, policy), **spec)
    algorithm = trace.algorithm
    assert 0 < algorithm.memory.filled <= 30
    assert set(algorithm.memory.data.t) == {0, 1, 2}
    assert abs(trace.losses - shared_run("naive", backend, **spec).losses)[-9:].max() > 1e-3


@every_backend
def test_a_reservoir_is_er(backend: str):
    """The parent's loss is ER's."""
    mine = run("naive", backend, kind=method(backend, "reservoir"))
    er = run("er", backend, memory_size=30)
    np.testing.assert_array_equal(mine.losses, er.losses)

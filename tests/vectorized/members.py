"""Small runs that share their compiled calls, and the same runs alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from comparison import assert_same_run
from experiments import LossRecorder, RowRecorder, Trace, build, run

from seqrun.training.engine.vmap import Failure
from seqrun.training.engine.vmap.jax import VmapGroup

TOLERANCE = 1e-5
"""On every number, absolute plus relative: sums within matrix products have another order."""
SHORT = {"num_tasks": 2, "samples_per_task": 40}
UNEVEN = SHORT | {"samples_per_task": 45}
"""The last batch of a task has 5 samples."""
TIMEOUT_SECONDS = 300
"""Seconds after which runs that still wait for each other count as deadlocked."""


def train(
    algo: str, specs: Sequence[Mapping[str, Any]], group: VmapGroup | None = None
) -> list[Trace | BaseException]:
    """Train one run for each specification of `experiments.build`, in lockstep."""
    group = group or VmapGroup()
    recorders = [(LossRecorder(), RowRecorder()) for _ in specs]
    algorithms = []
    for spec, own in zip(specs, recorders, strict=True):
        callbacks = [*spec.get("callbacks", ()), *own]
        algorithms.append(build(algo, "jax", **{**spec, "callbacks": callbacks}))
    found: dict[int, Any] = {}

    def work_of(algorithm: Any) -> Any:
        def work(member: Any) -> None:
            algorithm.engine.participant = member
            algorithm.fit()

        return work

    def in_time() -> None:
        group.run([work_of(a) for a in algorithms], found.__setitem__)

    thread = threading.Thread(target=in_time, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    assert not thread.is_alive(), "the runs wait for each other"
    assert len(found) == len(specs)
    traces: list[Trace | BaseException] = []
    for place, (algorithm, (losses, rows)) in enumerate(zip(algorithms, recorders, strict=True)):
        if isinstance(found[place], Failure):
            traces.append(found[place].error)
            continue
        algorithm.engine.participant = None
        traces.append(
            Trace(
                algorithm,
                np.concatenate(losses.losses),
                np.concatenate(losses.correct),
                [],
                algorithm.export_arrays(),
                algorithm.accuracy_matrix.copy(),
                rows.rows,
            )
        )
    return traces


def assert_like_single(
    algo: str, specs: Sequence[Mapping[str, Any]], traces: Sequence[Any], tolerance: float
) -> None:
    """Raise AssertionError unless each run agrees with the same run alone."""
    for spec, trace in zip(specs, traces, strict=True):
        assert isinstance(trace, Trace), trace
        alone = run(algo, "jax", **spec)
        assert_same_run(trace, alone, tolerance)
        np.testing.assert_array_equal(trace.correct, alone.correct)


def together(group: VmapGroup, name: str = "chunk") -> int:
    """Return the largest number of runs that shared one program for calls with this name."""
    keys = [key for key in group._programs if isinstance(key[-1], int)]
    return max((key[-1] for key in keys if key[0][0] == name), default=1)

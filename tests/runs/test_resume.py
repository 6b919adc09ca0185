"""A run that was stopped anywhere and continued ends with the bits of one that was not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import ALGORITHMS, build, every_algorithm
from parity.cases import SMALLER

from seqrun import checkpoint
from seqrun.algorithms.base import BaseAlgorithm
from seqrun.callbacks import BaseCallback, CheckpointCallback, MetricCallback
from seqrun.loggers import LocalLogger

KINDS_OF_STATE = ("naive", "ewc", "er", "derpp", "kcl", "mcsgd", "lamaml", "lfl", "icarl")
"""Algorithms that between them carry every kind of state; the others are in `make test-all`."""
SPEC: dict[str, Any] = {
    "stream": {"samples_per_task": 45, "num_tasks": 3},
    "training": {"epochs_per_task": 2, "chunk_steps": 2},
    "optimizer_options": {"lr": 0.02, "momentum": 0.9},
    "backbone": {"dropout": 0.2},
}


class Stopped(Exception):
    """The run was to stop here."""


@dataclass
class StopAfter(BaseCallback):
    """Stop the run after so many chunks of it."""

    chunks: int

    def on_after_chunk(self, algorithm: BaseAlgorithm, chunk: Any) -> None:
        """Count down."""
        self.chunks -= 1
        if self.chunks < 0:
            raise Stopped


def make(algo: str, backend: str, directory: Path, stop_after: int | None, **spec: Any) -> Any:
    """Build a run that keeps a checkpoint of every chunk."""
    callbacks: list[BaseCallback] = [MetricCallback()]
    callbacks.append(CheckpointCallback(every_steps=1, keep=2))
    if stop_after is not None:
        callbacks.append(StopAfter(stop_after))
    given = {**SPEC, **SMALLER.get(algo, {}), **spec}
    if algo == "icarl":
        given["stream"] = {**given["stream"], "num_tasks": 5}
    if algo == "stable_sgd":
        given["backbone"] = {}  # it has a dropout of its own
    algorithm = build(algo, backend, callbacks=callbacks, **given)
    algorithm.run_dir, algorithm.config_hash = directory, "abc"
    algorithm.loggers = [LocalLogger(figures=False)]
    return algorithm


def assert_same_end(resumed: Any, whole: Any) -> None:
    """Compare everything that two runs carry and recorded, to the bit."""
    a, b = resumed.export_arrays(), whole.export_arrays()
    assert sorted(a) == sorted(b)
    for name, array in b.items():
        assert a[name].tobytes() == array.tobytes(), name
    for name in ("accuracy_matrix", "accuracy_matrix_task_aware"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    counted = ("global_step", "samples_seen", "gradient_steps", "memory_bytes", "final_loss")
    for name in (*counted, "task_losses"):
        assert getattr(resumed, name) == getattr(whole, name), name
    lines = [(r.run_dir / "metrics.jsonl").read_bytes() for r in (resumed, whole)]
    assert lines[0] == lines[1]


def assert_resumes(algo: str, backend: str, folder: Path, stops: list[int], **spec: Any) -> None:
    """Stop a run after some chunks, again and again, and continue it each time."""
    whole = make(algo, backend, folder / "whole", None, **spec)
    whole.fit()
    for stop in stops:
        with pytest.raises(Stopped):
            run = make(algo, backend, folder / "cut", stop, **spec)
            run.fit(resume_from=checkpoint.latest(folder / "cut", config_hash="abc")[0])
    resumed = make(algo, backend, folder / "cut", None, **spec)
    start, wrong = checkpoint.latest(folder / "cut", config_hash="abc")
    assert start is not None and not wrong
    resumed.fit(resume_from=start)
    assert_same_end(resumed, whole)


BOTH = [
    pytest.param(algo, backend, marks=[] if algo in KINDS_OF_STATE else pytest.mark.full)
    for algo in ALGORITHMS
    for backend in ("torch", "jax")
]


@pytest.mark.parametrize(("algo", "backend"), BOTH)
def test_stopped_within_tasks(algo: str, backend: str, tmp_path: Path):
    """In the first task and later ones, at ends of epochs and within, and where chance says."""
    drawn = np.random.default_rng(sum(map(ord, algo))).integers(3)
    assert_resumes(algo, backend, tmp_path, [3, 3, int(drawn)])


@pytest.mark.full
@every_algorithm
def test_stopped_at_every_chunk(algo: str, tmp_path: Path):
    """Each chunk but the last, one after the other."""
    assert_resumes(algo, "torch", tmp_path, [0] * 12)

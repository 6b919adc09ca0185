"""A run that was stopped at any point and continued ends with the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import ALGORITHMS, build
from parity.cases import SMALLER

from seqrun.callbacks import BaseCallback, CheckpointCallback, MemoryCallback, MetricCallback
from seqrun.loggers import LocalLogger
from seqrun.memory import MemoryMechanism
from seqrun.records import checkpoint
from seqrun.training.callback import Run

KINDS_OF_STATE = ("naive", "ewc", "er", "derpp", "kcl", "mcsgd", "lamaml", "lfl", "icarl")
"""Algorithms that between them carry every kind of state; the others are in `make test-all`."""
SPEC: dict[str, Any] = {
    "stream": {"samples_per_task": 45, "num_tasks": 3},
    "training": {"epochs_per_task": 2, "chunk_steps": 2},
    "optimizer_options": {"lr": 0.02, "momentum": 0.9},
    "backbone": {"dropout": 0.2},
}


class Stopped(Exception):
    """Stops the run."""


@dataclass
class StopAfter(BaseCallback):
    """Stop the run after a number of chunks."""

    chunks: int

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        """Count down."""
        self.chunks -= 1
        if self.chunks < 0:
            raise Stopped


@dataclass
class CountChunks(BaseCallback):
    """Count the chunks of a run."""

    chunks: int = 0

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        """Count up."""
        self.chunks += 1


def make(algo: str, backend: str, directory: Path, stop_after: int | None, **spec: Any) -> Any:
    """Build a run that saves a checkpoint after every chunk."""
    callbacks: list[BaseCallback] = [MetricCallback()]
    callbacks.append(CheckpointCallback(every_steps=1, keep=2))
    if stop_after is not None:
        callbacks.append(StopAfter(stop_after))
    given = {**SPEC, **SMALLER.get(algo, {}), **spec}
    if algo == "icarl":
        given["stream"] = {**given["stream"], "num_tasks": 5}
    if algo == "stable_sgd":
        given["backbone"] = {}  # it has its own dropout
    algorithm = build(algo, backend, callbacks=callbacks, **given)
    algorithm.run_dir, algorithm.config_hash = directory, "abc"
    algorithm.loggers = [LocalLogger(figures=False)]
    return algorithm


def assert_same_end(resumed: Any, whole: Any) -> None:
    """Compare the whole state and record of two runs, to the bit."""
    a, b = resumed.export_arrays(), whole.export_arrays()
    assert sorted(a) == sorted(b)
    for name, array in b.items():
        assert a[name].tobytes() == array.tobytes(), name
    for name in ("accuracy_matrix", "accuracy_matrix_task_aware"):
        a, b = (getattr(run.progress, name) for run in (resumed, whole))
        np.testing.assert_array_equal(a, b)
    counted = ("global_step", "samples_seen", "gradient_steps", "memory_bytes", "final_loss")
    for name in (*counted, "task_losses"):
        assert getattr(resumed.progress, name) == getattr(whole.progress, name), name
    lines = [(r.run_dir / "metrics.jsonl").read_bytes() for r in (resumed, whole)]
    assert lines[0] == lines[1]


def assert_resumes(algo: str, backend: str, folder: Path, stops: list[int], **spec: Any) -> None:
    """Stop a run after so many chunks, for each number in `stops`, and continue it each time."""
    whole = make(algo, backend, folder / "whole", None, **spec)
    whole.fit()
    assert_continues(whole, algo, backend, folder, stops, **spec)


def assert_continues(
    whole: Any, algo: str, backend: str, folder: Path, stops: list[int], **spec: Any
) -> None:
    """As `assert_resumes`, given the run that is not stopped."""
    for stop in stops:
        with pytest.raises(Stopped):
            run = make(algo, backend, folder / "cut", stop, **spec)
            run.fit(resume_from=checkpoint.latest(folder / "cut", config_hash="abc")[0])
    resumed = make(algo, backend, folder / "cut", None, **spec)
    start, wrong = checkpoint.latest(folder / "cut", config_hash="abc")
    assert start is not None and not wrong
    resumed.fit(resume_from=start)
    assert_same_end(resumed, whole)


def marks_of(algo: str, backend: str) -> Any:
    """Return the mark of a case; on JAX, compiling takes long."""
    if algo not in KINDS_OF_STATE:
        return pytest.mark.full
    return JAX_MARKS.get(algo, pytest.mark.full) if backend == "jax" else ()


FULL = pytest.mark.full
JAX_MARKS = {"ewc": pytest.mark.ci, "er": pytest.mark.ci, "icarl": pytest.mark.ci}
JAX_LATE = {"lamaml": (), "joint": pytest.mark.ci, "kcl": pytest.mark.ci, "mcsgd": pytest.mark.ci}
"""The same for stops in the last third: those whose plan is not one of plain batches."""
BOTH = [
    pytest.param(algo, backend, marks=marks_of(algo, backend))
    for algo in ALGORITHMS
    for backend in ("torch", "jax")
]


@pytest.mark.parametrize(("algo", "backend"), BOTH)
def test_stopped_within_tasks(algo: str, backend: str, tmp_path: Path):
    """In the first task and later ones, within epochs and at their ends, and at random chunks."""
    drawn = np.random.default_rng(sum(map(ord, algo))).integers(3)
    assert_resumes(algo, backend, tmp_path, [3, 3, int(drawn)])


ANYWHERE = [
    pytest.param(algo, backend, marks=() if backend == "torch" else JAX_LATE.get(algo, FULL))
    for algo in ALGORITHMS
    for backend in ("torch", "jax")
]


@pytest.mark.ci
@pytest.mark.parametrize(("algo", "backend"), ANYWHERE)
def test_stopped_in_the_last_third(algo: str, backend: str, tmp_path: Path):
    """A run continues from there; the steps that it planned are those that it does."""
    count = CountChunks()
    whole = make(algo, backend, tmp_path / "whole", None)
    whole.callbacks.append(count)
    whole.fit()
    assert whole.engine.total_steps == whole.progress.global_step
    drawn = np.random.default_rng(sum(map(ord, algo))).integers(1, count.chunks // 3)
    assert_continues(whole, algo, backend, tmp_path, [count.chunks - 1 - int(drawn)])


CONVOLVING = [
    pytest.param(a, b, marks=[] if (a, b) == ("ewc", "torch") else pytest.mark.full)
    for a in ALGORITHMS
    for b in ("torch", "jax")
]


@pytest.mark.ci
@pytest.mark.parametrize(("algo", "backend"), CONVOLVING)
def test_stopped_with_convolutions(algo: str, backend: str, tmp_path: Path):
    """Their arrays have other memory layouts, which could change how sums are rounded."""
    network = {"channels": [8, 8], "hidden": [16], "batch_norm": True}
    spec = {"network": "cnn", "backbone": network}
    clipped = {"training": {**SPEC["training"], "grad_clip": 1.0}}
    assert_resumes(algo, backend, tmp_path, [3, 3], **spec, **clipped)


OPTIONS: dict[str, dict[str, Any]] = {
    "epochs evaluated": {"training": {**SPEC["training"], "evaluate_every": "epoch"}},
    "Adam, never fresh": {
        "training": {**SPEC["training"], "reinit_optimizer": "never"},
        "optimizer": "adam",
        "optimizer_options": {"lr": 0.01},
    },
    "BatchNorm": {"backbone": {"batch_norm": True}},
    "classes in a row": {
        "benchmark": "split_digits",
        "stream": {"num_tasks": 5, "scenario": "class", "samples_per_task": 45},
    },
    "validation": {"stream": {**SPEC["stream"], "validation_fraction": 0.1}},
    "a rate that decays": {"training": {**SPEC["training"], "lr_decay": 0.5, "grad_clip": 1.0}},
    "steps": {"training": {**SPEC["training"], "epochs_per_task": 1, "steps_per_task": 13}},
    "crops": {"stream": {**SPEC["stream"], "crop_padding": 1, "horizontal_flip": True}},
    "streams of their own": {"seed": 3, "streams": {"data": 5, "noise": 7}},
}


BY_DEFAULT = ("epochs evaluated", "steps", "Adam, never fresh", "BatchNorm", "classes in a row")
"""Options tested by default, on PyTorch; `make test-all` tests all options on both backends."""
OPTIONS_AND_BACKENDS = [
    pytest.param(n, b, marks=[] if b == "torch" and n in BY_DEFAULT else pytest.mark.full)
    for n in OPTIONS
    for b in ("torch", "jax")
]


@pytest.mark.ci
@pytest.mark.parametrize(("name", "backend"), OPTIONS_AND_BACKENDS)
def test_stopped_with_options(name: str, backend: str, tmp_path: Path):
    """In the first task and in the second; for ER, which also has a memory."""
    stops = [4, 5] if backend == "torch" else [7]
    assert_resumes("er", backend, tmp_path, stops, **OPTIONS[name])


@pytest.mark.ci
@pytest.mark.parametrize(
    ("policy", "stop"),
    [("reservoir", 1), ("reservoir", 4), ("ring", 5), ("class_balanced", 8)],
)
def test_a_memory_of_a_callback(policy: str, stop: int, tmp_path: Path):
    """It is the same after a stop in the first or second epoch, at its end or after the task."""

    def run(folder: str, stop_after: int | None) -> tuple[Any, MemoryMechanism]:
        memory = MemoryMechanism(policy=policy, memory_size=20, observe="every_epoch")
        made = make("naive", "torch", tmp_path / folder, stop_after)
        made.callbacks = [MemoryCallback(memory), *made.callbacks]
        return made, memory

    whole, expected = run("whole", None)
    whole.fit()
    with pytest.raises(Stopped):
        run("cut", stop)[0].fit()
    resumed, memory = run("cut", None)
    resumed.fit(resume_from=checkpoint.latest(tmp_path / "cut", config_hash="abc")[0])
    assert_same_end(resumed, whole)
    assert memory.seen == expected.seen
    for a, b in zip(memory.data, expected.data, strict=True):
        np.testing.assert_array_equal(a, b)


@dataclass
class Keeps(BaseCallback):
    """Count the chunks and validations of the whole run, in numbers and in an array."""

    chunks: int = 0
    validations: int = 0

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        """Count up."""
        self.chunks += 1

    def on_after_validation(self, run: Run) -> None:
        """Count up."""
        self.validations += 1

    def export_state(self, run: Run) -> dict[str, Any]:
        """Return both."""
        return {"chunks": self.chunks, "validations": np.array([self.validations])}

    def import_state(self, run: Run, state: Any) -> None:
        """Take both."""
        self.chunks, self.validations = state["chunks"], int(state["validations"][0])


@pytest.mark.ci
def test_parts_continue_from_every_checkpoint(tmp_path: Path):
    """A callback's state and a logger's: within a task, at an epoch's end and at a task's end."""

    def run(folder: str) -> tuple[Any, Keeps]:
        keeps = Keeps()
        made = make("naive", "torch", tmp_path / folder, None)
        made.callbacks = [keeps, MetricCallback(), CheckpointCallback(every_steps=1, keep=99)]
        return made, keeps

    whole, expected = run("whole")
    whole.fit()
    folders = sorted((tmp_path / "whole" / checkpoint.FOLDER).iterdir())
    lines = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert sum(folder.name.endswith("-end") for folder in folders) == 3
    for folder in folders:
        resumed, keeps = run("whole")
        resumed.fit(resume_from=checkpoint.load(folder, config_hash="abc"))
        assert (keeps.chunks, keeps.validations) == (expected.chunks, expected.validations), folder
        assert_same_end(resumed, whole)
        assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == lines


@pytest.mark.ci
@pytest.mark.parametrize(
    "algo",
    [pytest.param(a, marks=[] if a == "lamaml" else pytest.mark.full) for a in ALGORITHMS],
)
def test_stopped_at_every_chunk(algo: str, tmp_path: Path):
    """After every chunk except the last."""
    assert_resumes(algo, "torch", tmp_path, [0] * 12)

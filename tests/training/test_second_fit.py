"""A second `fit()` of one object trains anew and ends like the first, whatever ended that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import build, every_algorithm, every_backend, jax_in_full

from seqrun.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EarlyStoppingCallback,
    MemoryCallback,
    MetricCallback,
    StabilityGapCallback,
    TimingCallback,
)
from seqrun.loggers import LocalLogger, TensorBoardLogger
from seqrun.memory import MemoryMechanism
from seqrun.records import checkpoint
from seqrun.training.callback import Run

SHORT: dict[str, Any] = {"training": {"epochs_per_task": 1, "chunk_steps": 4}}


class FailOnce(BaseCallback):
    """Raise an error within the second task of the first run."""

    def __init__(self) -> None:
        self.has_failed = False

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        if run.task == 2 and not self.has_failed:
            self.has_failed = True
            raise OSError("the disk is full")


def end_of(algorithm: Any) -> dict[str, np.ndarray]:
    """Return what a run leaves: its arrays and the matrices and counters of its progress."""
    progress = algorithm.progress
    counters = {k: v for k, v in progress.counters.items() if k != "timing"}
    return {
        **algorithm.export_arrays(),
        **progress.matrices,
        "counters": np.array(json.dumps(counters)),
    }


def assert_same_end(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.ci
@every_algorithm
@jax_in_full
def test_a_second_fit_gives_the_same(algo, backend):
    algorithm = build(algo, backend, **SHORT)
    first = algorithm.fit()
    expected = end_of(algorithm)
    second = algorithm.fit()
    assert_same_end(end_of(algorithm), expected)
    assert second.metrics == first.metrics and second.train_loss == first.train_loss


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("algo", ["er", "icarl"])
def test_a_fit_after_an_exception_gives_the_same(algo, backend):
    expected = build(algo, backend, **SHORT)
    expected.fit()
    algorithm = build(algo, backend, callbacks=[FailOnce()], **SHORT)
    with pytest.raises(OSError, match="the disk is full"):
        algorithm.fit()
    algorithm.fit()
    assert_same_end(end_of(algorithm), end_of(expected))


PRODUCTS = ("metrics.jsonl", "stability_gap.json", "accuracy_matrix.csv")


@pytest.mark.ci
@pytest.mark.parametrize("fails", [False, True])
def test_callbacks_and_loggers_begin_anew_too(tmp_path, fails):
    """Files are those of one run, and the checkpoints are of the second."""
    memory = MemoryCallback(MemoryMechanism(policy="reservoir", memory_size=20))
    gap = StabilityGapCallback(every_steps=3)
    saving = CheckpointCallback(every_steps=5, keep=2)
    callbacks = [
        MetricCallback(),
        TimingCallback(),
        EarlyStoppingCallback(patience=1),
        memory,
        gap,
        saving,
        *([FailOnce()] if fails else []),
    ]
    stream = {"num_tasks": 2, "samples_per_task": 60, "validation_fraction": 0.1}
    training = {"epochs_per_task": 3, "chunk_steps": 4}
    algorithm = build("naive", "torch", callbacks=callbacks, stream=stream, training=training)
    algorithm.run_dir, algorithm.config_hash = tmp_path, "abc"
    algorithm.loggers = [LocalLogger(figures=False), TensorBoardLogger()]
    if fails:
        with pytest.raises(OSError):
            algorithm.fit()
    ends = []
    for _ in range(2):
        algorithm.fit()
        files = [(tmp_path / name).read_bytes() for name in PRODUCTS]
        stored = {f"stored/{n}": a for n, a in memory.memory.export_arrays().items()}
        latest, unusable = checkpoint.latest(tmp_path, config_hash="abc")
        assert not unusable and latest is not None and latest.task_is_done
        ends.append((files, {**end_of(algorithm), **stored}))
        kept = [path for path in Path(tmp_path, "checkpoints").iterdir() if path.suffix == ""]
        assert len(kept) == 2
    assert ends[0][0] == ends[1][0]
    assert_same_end(ends[1][1], ends[0][1])

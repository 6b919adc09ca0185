"""training.steps_per_task: batches instead of epochs, which go on through fresh orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from experiments import ALGORITHMS, build, every_backend, jax_in_full

from seqrun.algorithms.base import TrainingOptions
from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.plan import Chunk
from seqrun.training.callback import Run

EPOCH = 9
"""Batches in an epoch of the small experiments; in a joint one, of the first task."""


class Watch(BaseCallback):
    """Keep the batches and losses of the first task."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.losses: list[float] = []

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        if run.task == 1:
            assert chunk.losses is not None
            self.rows += list(chunk.arrays["index"])
            self.losses += list(map(float, chunk.losses))


def trained(algo: str, backend: str, **training: Any) -> tuple[Watch, Any]:
    watch = Watch()
    algorithm = build(algo, backend, training={"epochs_per_task": 1} | training, callbacks=[watch])
    return watch, algorithm.fit()


@jax_in_full
@pytest.mark.parametrize("steps", [1, EPOCH - 1, EPOCH, EPOCH + 4, 2 * EPOCH])
def test_they_are_the_first_of_the_epochs(backend, steps):
    """To the bit, with the partial last batch where it comes."""
    whole, _ = trained("naive", backend, epochs_per_task=2)
    watch, record = trained("naive", backend, steps_per_task=steps)
    assert len(watch.rows) == steps and record.cost["gradient_steps"] == 3 * steps
    for one, other in zip(watch.rows, whole.rows, strict=False):
        np.testing.assert_array_equal(one, other)
    assert watch.losses == whole.losses[:steps]


def test_whole_epochs_are_the_same_run():
    _, epochs = trained("er", "torch", epochs_per_task=2)
    _, steps = trained("er", "torch", steps_per_task=2 * EPOCH)
    np.testing.assert_array_equal(epochs.accuracy_matrix, steps.accuracy_matrix)


def test_a_ring_keeps_the_last_samples_of_the_task():
    """Not only those of the epoch that was cut short."""
    stored = {}
    for steps in (EPOCH, EPOCH + 1):
        training = {"epochs_per_task": 1, "steps_per_task": steps}
        algorithm = build("agem", "torch", training=training, per_task_memory_samples=60)
        algorithm.fit()
        assert algorithm.memory.policy == "ring"
        assert algorithm.memory.data is not None
        stored[steps] = len(algorithm.memory.data.y)
    assert stored[EPOCH] == stored[EPOCH + 1]


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_takes_as_many(algo, backend):
    algorithm = build(algo, backend, training={"epochs_per_task": 1, "steps_per_task": 4})
    algorithm.fit()
    steps = 4 * len(algorithm.trained_tasks()) * algorithm.steps_per_batch
    assert algorithm.progress.global_step == algorithm.engine.total_steps == steps


@jax_in_full
def test_one_per_task(backend):
    _, record = trained("naive", backend, steps_per_task=[1, 20, 2])
    assert record.cost["gradient_steps"] == 23


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_task": 0}, "training.steps_per_task=0: must be an integer >= 1"),
        ({"steps_per_task": "x"}, "training.steps_per_task='x': must be an integer >= 1 or a list"),
        ({"steps_per_task": 5, "epochs_per_task": 2}, "epochs_per_task=2: must be left at 1 with"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainingOptions(**options)


def test_a_list_has_one_entry_per_task():
    with pytest.raises(ConfigError, match=r"training.steps_per_task=\[1, 2\]: has 2 entries"):
        build("naive", "torch", training={"epochs_per_task": 1, "steps_per_task": [1, 2]})

"""Dropout has its own random stream and draws new numbers at every step."""

from __future__ import annotations

import numpy as np
import pytest
from experiments import LossRecorder, component, every_backend, run
from tiny import TinyBenchmark

from seqrun.benchmarks import Dataset

# One batch holds the whole task and weights are constant: only noise can change a loss.
STILL = {
    "stream": {"num_tasks": 1, "samples_per_task": 10, "batch_size": 10},
    "optimizer_options": {"lr": 1e-12},
    "training": {"epochs_per_task": 4},
}


@pytest.mark.ci
@every_backend
def test_every_step_has_noise_of_its_own(backend: str):
    """Also in different chunks: here each epoch is one chunk."""
    plain = run("naive", backend, **STILL)
    np.testing.assert_allclose(plain.losses, plain.losses[0], rtol=1e-6)
    noisy = run("naive", backend, **STILL, backbone={"dropout": 0.5})
    assert len(np.unique(noisy.losses)) == len(noisy.losses) == 4


@pytest.mark.ci
@every_backend
def test_noise_has_a_stream_of_its_own(backend: str):
    """Its seed matters only with dropout, and by default it follows the run's seed."""
    for dropout in (0.0, 0.5):
        spec = STILL | {"backbone": {"dropout": dropout}}
        first, again, other = (
            run("naive", backend, streams={"noise": seed}, **spec).losses for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        assert (first == other).all() == (dropout == 0.0)
    fixed = {"init": 0, "tasks": 0, "data": 0, "memory": 0}
    by_seed = [run("naive", backend, streams=fixed, seed=s, **spec).losses for s in (1, 2)]
    assert (by_seed[0] != by_seed[1]).all()


class OneImage(TinyBenchmark):
    """The same image and label again and again."""

    def prepare_datasets(self):
        x, y = np.full((8, 1, 2, 1), 200, np.uint8), np.zeros(8, np.int32)
        return {1: Dataset.of_task(x, y, 1)}, {1: Dataset.of_task(x, y + 1, 1)}


@pytest.mark.ci
@every_backend
def test_noise_differs_within_a_chunk(backend: str):
    """Eight steps of one chunk read the same sample."""
    recorder = LossRecorder()
    component("algo", "naive", backend)[0](
        benchmark=OneImage(num_tasks=1, batch_size=1),
        backbone=component("backbone", "mlp", backend)[0](width=64, dropout=0.5),
        optimizer=component("optimizer", "sgd", backend)[0](lr=1e-12),
        callbacks=[recorder],
    ).fit()
    (losses,) = recorder.losses
    assert len(np.unique(losses)) == len(losses) == 8

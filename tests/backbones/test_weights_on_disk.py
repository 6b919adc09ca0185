"""The network of a checkpoint on disk can be loaded on either backend, into any method."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
from backbones.test_twins import NETWORKS, spec
from comparison import assert_close
from experiments import BACKENDS, build

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.callbacks import CheckpointCallback
from seqrun.records import checkpoint
from seqrun.records.checkpoint import CheckpointError, load_weights, read_weights
from seqrun.training.trainer import Trainer


def made(network: str, backend: str, **more: Any) -> BaseAlgorithm:
    return build("naive", backend, **spec(network), **more)


def saved(algorithm: BaseAlgorithm, directory: Any, seed: int) -> Any:
    """Fill a started algorithm's network with noise and write a checkpoint; return its folder."""
    rng = np.random.default_rng(seed)
    arrays = algorithm.export_arrays()
    for name in arrays:
        if name.startswith(("params/", "stats/")):
            noise = rng.uniform(0.05, 0.3, arrays[name].shape).astype(np.float32)
            signs = 1 if name.endswith(("/var", "/scale")) else rng.choice([-1, 1], noise.shape)
            arrays[name] = (noise * signs).astype(np.float32)
    algorithm.import_arrays(arrays)
    algorithm.progress.final_loss = 0.0
    return checkpoint.save(Trainer(algorithm).checkpoint(), directory, config_hash=f"of {seed}")


class Predictor:
    """Compute logits of uint8 images; on JAX it compiles once for all weights."""

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.call = jax.jit(lambda p, s, x: algorithm.predict(p, s, algorithm.engine.inputs(x)))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        a = self.algorithm
        if a.backend == "jax":
            return np.asarray(self.call(a.params, a.stats, images))
        with torch.no_grad():
            return a.predict(a.params, a.stats, a.engine.inputs(torch.from_numpy(images))).numpy()


@pytest.mark.ci
@pytest.mark.parametrize("network", NETWORKS)
def test_checkpoints_give_the_same_outputs_on_the_other_backend(network, tmp_path):
    """With noise in every parameter and statistic; outputs agree up to float32 rounding."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    by_torch, by_jax = (made(network, backend, seed=n) for n, backend in enumerate(BACKENDS))
    for algorithm in (by_torch, by_jax):
        algorithm.benchmark.prepare(algorithm.random)
        algorithm.engine.start()
        algorithm.engine.set_weights(algorithm.initial_weights())
    predictors = Predictor(by_torch), Predictor(by_jax)
    for seed, (source, target) in enumerate([predictors, predictors[::-1]]):
        folder = saved(source.algorithm, tmp_path / f"{seed}", seed)
        expected = source(images)
        assert np.ptp(expected) > 0.01
        before = target(images)
        load_weights(folder, target.algorithm)
        found = target(images)
        scale = max(1.0, float(abs(expected).max()))
        assert abs(before - expected).max() > 0.01 * scale
        assert_close("logits", found / scale, expected / scale, 2e-5)
        for name, array in read_weights(tmp_path / f"{seed}").items():
            group = "stats/" if name.endswith(("/mean", "/var")) else "params/"
            np.testing.assert_array_equal(target.algorithm.export_arrays()[group + name], array)


@pytest.mark.ci
def test_weights_of_a_run_load_into_another_method_and_backend(tmp_path):
    """A run directory loads into an algorithm that has not been run."""
    run_dir = tmp_path / "run"
    keys = spec("mlp") | {"callbacks": [CheckpointCallback()]}
    trained = build("naive", "torch", **keys)
    trained.run_dir, trained.config_hash = run_dir, "of the run"
    trained.fit()
    other = build("si", "jax", **spec("mlp"), seed=5)
    load_weights(str(run_dir), other)
    images = trained.benchmark.task_data(1, "test").x[:30]
    assert_close("logits", Predictor(other)(images), Predictor(trained)(images), 1e-5)
    live = trained.export_arrays()
    weights = read_weights(run_dir)
    stats = {name.removeprefix("stats/") for name in live if name.startswith("stats/")}
    groups = {name: f"{'stats' if name in stats else 'params'}/{name}" for name in weights}
    assert set(groups.values()) == {n for n in live if n.startswith(("params/", "stats/"))}
    for name, array in weights.items():
        np.testing.assert_array_equal(array, live[groups[name]])


def test_unsuitable_checkpoints_are_refused(tmp_path):
    """A checkpoint of another network, a missing one, and a damaged one."""
    small = made("mlp", "torch")
    small.benchmark.prepare(small.random)
    small.engine.start()
    small.engine.set_weights(small.initial_weights())
    folder = saved(small, tmp_path / "run", 0)
    wide = spec("mlp") | {"backbone": {"batch_norm": True, "width": 8}}
    with pytest.raises(CheckpointError, match=r"hidden_0/kernel: is float32\[64, 16\], must be"):
        load_weights(folder, build("naive", "torch", **wide))
    plain = spec("mlp") | {"backbone": {}}
    with pytest.raises(CheckpointError, match="norm_0/bias: is not in this network"):
        load_weights(folder, build("naive", "torch", **plain))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        read_weights(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / "nowhere")
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    (folder / "state.json").write_text(json.dumps(state | {"sha256": "0"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="its checksum does not match its content"):
        read_weights(tmp_path / "run")

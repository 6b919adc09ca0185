"""seqrun.backbones.wrap: custom modules as encoders, on both backends."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from experiments import algorithm_class, component
from flax import linen, nnx

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.backbones import wrap
from seqrun.backbones.wrapped.torch import Wrapped
from seqrun.benchmarks import RotatedDigits, SplitDigits
from seqrun.checks import ConfigError

ROTATED = {"num_tasks": 2, "samples_per_task": 35}


class TorchBody(torch.nn.Module):
    """A convolution, the mean over positions, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 6, 3)
        self.dense = torch.nn.Linear(6, 5)

    def forward(self, x):
        return self.dense(self.conv(x).relu().mean((2, 3)))


class LinenBody(linen.Module):
    """TorchBody in linen."""

    def setup(self) -> None:
        self.conv = linen.Conv(6, (3, 3), padding="VALID")
        self.dense = linen.Dense(5)

    def __call__(self, x):
        return self.dense(linen.relu(self.conv(x)).mean((1, 2)))


class NnxBody(nnx.Module):
    """TorchBody in nnx."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 6, (3, 3), padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.conv(x)).mean((1, 2)))


class LinenNorm(linen.Module):
    """Dense, BatchNorm and dropout, in flax's own conventions."""

    rate: float = 0.0

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.Dense(7, name="dense")(x)
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        return linen.Dropout(self.rate, deterministic=not train)(linen.relu(x))


class NnxNorm(nnx.Module):
    """LinenNorm in nnx."""

    def __init__(self, rate: float = 0.0) -> None:
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(64, 7, rngs=rngs)
        self.norm = nnx.BatchNorm(7, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.drop(nnx.relu(self.norm(self.dense(x))))


def torch_norm(rate: float = 0.0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(64, 7), torch.nn.BatchNorm1d(7), torch.nn.ReLU(), torch.nn.Dropout(rate)
        )


def make_algorithm(
    backbone: Any, algo: str = "naive", seed: int = 0, **options: Any
) -> BaseAlgorithm:
    backend = backbone.backend
    stream = RotatedDigits(**ROTATED)
    if algo == "icarl":
        stream = SplitDigits(scenario="class", samples_per_task=35)
    return algorithm_class(algo, backend)(
        benchmark=stream,
        backbone=backbone,
        optimizer=component("optimizer", "sgd", backend)[0](lr=0.05),
        seed=seed,
        device="cpu",
        **options,
    )


def fit(backbone: Any, algo: str = "naive", **options: Any) -> BaseAlgorithm:
    algorithm = make_algorithm(backbone, algo, **options)
    algorithm.fit()
    return algorithm


def initial_weights(backbone: Any, seed: int = 0) -> dict[str, np.ndarray]:
    algorithm = make_algorithm(backbone, seed=seed)
    algorithm.benchmark.prepare(algorithm.random)
    algorithm.engine.start()
    return algorithm.initial_weights()


def assert_same(a: BaseAlgorithm, b: BaseAlgorithm, tolerance: float = 1e-5) -> None:
    """Assert that the exported arrays and the accuracies of two runs agree."""
    first, second = a.export_arrays(), b.export_arrays()
    assert sorted(first) == sorted(second)
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], tolerance, tolerance, err_msg=name)
    np.testing.assert_allclose(a.accuracy_matrix, b.accuracy_matrix, atol=0.003)


@pytest.mark.ci
@pytest.mark.parametrize(
    "algo",
    ["lfl", *(pytest.param(a, marks=pytest.mark.full) for a in ("ewc", "icarl", "kcl"))],
)
def test_custom_twins_agree(algo):
    """Layers of the same names start and train alike, also where a method uses the encoder."""
    options = {"initialization": "torch_default"}
    by_torch = fit(wrap(TorchBody(), **options), algo)
    assert_same(fit(wrap(LinenBody(), **options), algo), by_torch)
    assert any(a.shape == (3, 3, 1, 6) for a in by_torch.export_arrays().values())


@pytest.mark.ci
def test_nnx_agrees_with_linen():
    """Both kinds of flax modules, with weights that the backbone draws."""
    options = {"initialization": "kaiming_normal"}
    linen_run = fit(wrap(LinenBody(), **options))
    assert_same(fit(wrap(NnxBody(nnx.Rngs(3)), **options)), linen_run, 1e-6)


@pytest.mark.ci
def test_batch_statistics_agree():
    """BatchNorm of nnx and linen, in train and in eval mode."""
    options = {"initialization": "torch_default", "layout": "flat"}
    by_linen = fit(wrap(LinenNorm(), **options))
    by_nnx = fit(wrap(NnxNorm(), **options))
    assert_same(by_nnx, by_linen, 1e-5)
    assert by_linen.backbone.has_batch_statistics and by_nnx.backbone.has_batch_statistics
    assert abs(by_nnx.export_arrays()["stats/body/norm/mean"]).max() > 0.01


def test_own_weights_and_statistics_are_kept_and_the_module_is_not_changed():
    """Only the classifier is drawn from the seed."""
    body = torch_norm()
    with torch.no_grad():
        body[1].running_mean += 3.0
    before = {n: v.clone() for n, v in body.state_dict().items()}
    first, second = (initial_weights(wrap(body, layout="flat"), seed=s) for s in (0, 1))
    np.testing.assert_array_equal(first["body/0/kernel"], before["0.weight"].T)
    np.testing.assert_array_equal(first["body/0/kernel"], second["body/0/kernel"])
    np.testing.assert_array_equal(first["body/1/mean"], np.full(7, 3.0))
    assert (first["classifier/kernel"] != second["classifier/kernel"]).any()
    assert (first["classifier/bias"] != 0).all()
    trained = fit(wrap(body, layout="flat")).export_arrays()
    assert (trained["params/body/0/kernel"] != first["body/0/kernel"]).any()
    assert (trained["stats/body/1/mean"] < 2).any()  # it has moved on from 3
    assert all((body.state_dict()[n] == v).all() for n, v in before.items())


@pytest.mark.ci
def test_nnx_keeps_its_weights_and_linen_draws_by_its_own_initializers():
    module = NnxBody(nnx.Rngs(5))
    weights = initial_weights(wrap(module))
    np.testing.assert_array_equal(weights["body/dense/kernel"], module.dense.kernel[...])
    drawn = [initial_weights(wrap(LinenBody()), seed=s) for s in (0, 0, 1)]
    kernels = [w["body/dense/kernel"] for w in drawn]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()
    assert (drawn[0]["body/dense/bias"] == 0).all()  # flax's initializer


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: wrap(torch_norm(rate), layout="flat"),
        pytest.param(lambda rate: wrap(LinenNorm(rate), layout="flat"), marks=pytest.mark.full),
        pytest.param(lambda rate: wrap(NnxNorm(rate), layout="flat"), marks=pytest.mark.full),
    ],
    ids=["torch", "linen", "nnx"],
)
def test_noise_in_the_module_depends_on_the_run_only(make):
    """It repeats, differs with another seed, and leaves torch's global generator as it was."""
    torch.manual_seed(7)
    outside = torch.random.get_rng_state()
    one, again, none = (fit(make(r)).export_arrays() for r in (0.5, 0.5, 0.0))
    assert (torch.random.get_rng_state() == outside).all()
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])
    assert any((value != none[n]).any() for n, value in one.items())
    other = fit(make(0.5), streams={"noise": 5}).export_arrays()
    assert any((value != other[n]).any() for n, value in one.items())


@pytest.mark.ci
def test_dropout_layers_of_nnx_are_independent_and_differ_between_steps():
    """Two consecutive dropout layers keep a quarter, not a half; another key gives other masks."""

    class Two(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.second(self.first(x))

    module = wrap(Two(), layout="flat").build((20, 20, 1), 3)
    x = np.ones((10, 20, 20, 1), np.float32)
    variables = module.init(jax.random.key(0), x)

    def kept(seed: int) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        return np.array(module.apply(variables, x, train=True, rngs=rngs, method="encode")) > 0

    assert kept(0).mean() == pytest.approx(0.25, abs=0.03)
    assert (kept(0) != kept(1)).mean() > 0.2
    assert (np.array(module.apply(variables, x, method="encode")) == 1).all()


def test_the_modules_own_classifier_is_removed():
    class Whole(TorchBody):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(5, 1000))

        def forward(self, x):
            return self.head(super().forward(x))

    whole = Whole()
    built = wrap(whole, classifier="head.1", features=5).build((8, 8, 1), 10)
    x = torch.rand(4, 8, 8, 1)
    assert built(x).shape == (4, 10)
    expected = TorchBody.forward(whole, x.permute(0, 3, 1, 2)).relu()
    assert (built.encode(x) == expected).all()
    assert isinstance(whole.head[1], torch.nn.Linear)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Unused(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.b = torch.nn.Linear(64, 64)

    def forward(self, x):
        return self.a(x)


class Caching(linen.Module):
    @linen.compact
    def __call__(self, x):
        self.variable("cache", "last", lambda: x.sum())
        return linen.Dense(3)(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wrap(3), "must be a torch.nn.Module or a flax module"),
        (lambda: wrap(Tied(), layout="flat"), "shares a parameter"),
        (lambda: wrap(Unused(), layout="flat"), "body/b/kernel has no effect"),
        (lambda: wrap(torch_norm().requires_grad_(False), layout="flat"), "require a gradient"),
        (lambda: wrap(TorchBody(), features=6), "features=6: must be 5"),
        (lambda: wrap(LinenBody(), features=6), "features=6: must be 5"),
        (lambda: wrap(TorchBody(), features=0), "features=0: must be an integer >= 1"),
        (lambda: wrap(TorchBody(), classifier="fc"), "no such layer; it has conv, dense"),
        (lambda: wrap(LinenBody(), classifier="dense"), "must be null for a flax module"),
        (lambda: wrap(TorchBody(), layout="CHW"), "did you mean NCHW"),
        (lambda: wrap(TorchBody(), initialization="zeros"), "must be one of own, torch_default"),
        (lambda: wrap(Caching(), layout="flat"), "keeps cache"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError) as caught:
        make().build((8, 8, 1), 10)
    assert message in str(caught.value)


OWN = '''
from dataclasses import dataclass
from torch import nn
from seqrun.backbones.wrapped.torch import Wrapped


@dataclass(kw_only=True, eq=False)
class MyNet(Wrapped):
    """A custom network."""

    width: int = 8
    layout: str = "flat"
    name = "my_net"

    def make_body(self, input_shape):
        return nn.Sequential(nn.LayerNorm(64), nn.Linear(64, self.width), nn.ReLU())
'''


@pytest.mark.ci
def test_a_custom_class_is_a_backbone_for_yaml(tmp_path, monkeypatch):
    """Its arguments are keys, and the weights that it draws itself depend on the seed."""
    (tmp_path / "my_net.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    from experiments import CONF

    from seqrun.cli import preflight
    from seqrun.config import build as experiment

    command = ["backbone._target_=my_net.MyNet", "allow_targets=[my_net]", "backbone.width=9"]
    command += [f"~backbone.{key}" for key in ("n_hidden_layers", "dropout", "batch_norm")]
    (job,) = preflight.check([*command, "benchmark.samples_per_task=30"], CONF)
    algorithm = experiment.build(job.config, seed=0)
    assert isinstance(algorithm.backbone, Wrapped) and algorithm.backbone.width == 9
    algorithm.loggers = algorithm.callbacks = []
    algorithm.fit()
    assert algorithm.names["backbone"] == "my_net"
    weights = algorithm.initial_weights()
    assert weights["body/1/kernel"].shape == (64, 9)
    assert (weights["body/0/weight"] == 1).all()  # LayerNorm's own initial weight
    other = replace(algorithm.backbone, initialization="own")
    state = torch.random.get_rng_state()
    own = [initial_weights(other, seed=s)["body/1/kernel"] for s in (0, 0, 1)]
    assert (own[0] == own[1]).all() and (own[0] != own[2]).any()
    assert (torch.random.get_rng_state() == state).all()
    sys.modules.pop("my_net")

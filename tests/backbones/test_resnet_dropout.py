"""Dropout in ResNets by hand, on both backends: where, at which rate, and only in training."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from experiments import component, every_backend

from seqrun.backbones.resnet.jax import Block as JaxBlock
from seqrun.backbones.resnet.torch import Block as TorchBlock
from seqrun.formulas.parameters.jax import as_tree, canonical
from seqrun.formulas.parameters.torch import canonical_names, from_canonical, to_canonical

DROPPED = 0.9
SHAPE = (32, 8, 8, 16)


def forward(module: Any, backend: str, values: dict[str, Any], x: np.ndarray, train: bool):
    """Return the (B, ...) outputs of a module.

    Args:
        values: end of a parameter's name -> its value; other parameters are 0, and running
            statistics have their initial values.
    """

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        known = next((v for end, v in values.items() if name.endswith(end)), 0.0)
        return np.broadcast_to(np.asarray(known, np.float32), shape).copy()

    if backend == "torch":
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in canonical_names(module)[0].items():
                shape = tuple(to_canonical(parameter, name).shape)
                parameter.copy_(from_canonical(torch.from_numpy(value(name, shape)), name))
            module.train(train)
            if isinstance(module, TorchBlock):
                out = module(torch.from_numpy(x).permute(0, 3, 1, 2))
                return out.permute(0, 2, 3, 1).numpy()
            return module.encode(torch.from_numpy(x)).numpy()
    method = None if isinstance(module, JaxBlock) else type(module).encode
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
    params = as_tree({n: value(n, s.shape) for n, s in canonical(shapes["params"]).items()})
    fresh = canonical(shapes["batch_stats"]).items()
    stats = {n: np.full(s.shape, float(n.endswith("var")), np.float32) for n, s in fresh}
    variables = {"params": params, "batch_stats": as_tree(stats)}
    given = {"method": method, "mutable": ["batch_stats"]}
    call = jax.jit(lambda v, x, key: module.apply(v, x, train, rngs={"dropout": key}, **given)[0])
    return np.asarray(call(variables, x, jax.random.key(0)))


def shares(values: np.ndarray, expected: dict[float, float]) -> None:
    """Assert the share of each value in an array, within 5 standard deviations."""
    for value, share in expected.items():
        found = np.isclose(values, value, rtol=1e-3, atol=1e-3).mean()
        assert abs(found - share) < 5 * (share * (1 - share) / values.size) ** 0.5, (value, found)
    assert sum(expected.values()) == pytest.approx(1)


@pytest.mark.ci
@every_backend
def test_a_block_drops_after_each_of_its_two_relus(backend):
    """All inputs are constant, so every value shows which dropouts it survived.

    The first norm returns 10; dropout keeps a tenth of the values, as 100. The second convolution
    copies each channel. Its norm, with mean 10 and deviation 30, maps a kept value to 3 and others
    to -1/3; with bias 1 these are 4 and 2/3. Dropout again keeps a tenth, multiplied by ten.
    """
    kind = {"torch": TorchBlock, "jax": JaxBlock}[backend]
    module = kind(16, 16, 1, DROPPED)
    centre = np.zeros((3, 3, 16, 16), np.float32)
    centre[1, 1] = np.eye(16)
    values = {
        "conv_1/kernel": centre, "scale": 1.0, "norm_0/bias": 10.0, "norm_1/bias": 1.0
    }  # fmt: skip
    x = np.zeros(SHAPE, np.float32)
    assert forward(module, backend, values, x, train=False) == pytest.approx(11, rel=1e-4)
    out = forward(module, backend, values, x, train=True)
    near = np.where(out > 20, 40, np.where(out > 0, 20 / 3, 0))  # each channel has its own mean
    np.testing.assert_allclose(out, near, rtol=0.15)
    shares(near, {0.0: 0.9, 20 / 3: 0.09, 40.0: 0.01})


NETWORKS = pytest.param("resnet18", marks=pytest.mark.full), "resnet18_thin"


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("name", NETWORKS)
def test_the_option_reaches_every_block(backend, name):
    """With kernels 0 and biases 1, the last block adds 1 to its input and applies dropout.

    A tenth of its inputs are 20, as the previous block scales 1 + 1 by 10; the others are 0.
    """
    kind, keys = component("backbone", name, backend)
    module = kind(**keys | {"nf": 16, "dropout": DROPPED}).build((1, 1, 1), 10)
    x = np.zeros((128, 1, 1, 1), np.float32)
    out = forward(module, backend, {"bias": 1.0}, x, train=True)
    assert out.shape == (128, 128)  # maps of one position: the mean of one value
    shares(out, {0.0: 0.9, 10.0: 0.09, 210.0: 0.01})

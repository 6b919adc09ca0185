"""Optimizers with a twin: the same updates as torch.optim's, on both backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from experiments import component

from seqrun.checks import ConfigError
from seqrun.optimizers import BaseOptimizer

CASES = {
    "sgd": ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "adam": ("Adam", {"weight_decay": 0.1}),
    "adamw": ("AdamW", {"weight_decay": 0.1}),
    "adamw_default": ("AdamW", {}),
    "rmsprop": ("RMSprop", {"weight_decay": 0.1, "alpha": 0.9}),
    "rmsprop_momentum": ("RMSprop", {"momentum": 0.9}),
    "adagrad": ("Adagrad", {"weight_decay": 0.1, "initial_accumulator_value": 0.1}),
}


def made(name: str, backend: str, **options: Any) -> BaseOptimizer:
    """Return an optimizer of conf/optimizer."""
    make, keys = component("optimizer", name.split("_")[0], backend)
    return make(**keys | options)


def gradients() -> list[dict[str, np.ndarray]]:
    """Return the gradients of a few steps."""
    rng = np.random.default_rng(0)
    return [
        {"a": rng.normal(size=(3, 2)).astype(np.float32), "b": np.float32(rng.normal(size=4))}
        for _ in range(6)
    ]


def start() -> dict[str, np.ndarray]:
    """Return the parameters before the first step."""
    return {"a": np.full((3, 2), 0.5, np.float32), "b": np.linspace(-1, 1, 4, dtype=np.float32)}


def walk(optimizer: BaseOptimizer, backend: str, lr: float) -> dict[str, np.ndarray]:
    """Return the parameters after the steps."""
    if backend == "torch":
        import torch

        params: Any = {n: torch.nn.Parameter(torch.from_numpy(p)) for n, p in start().items()}
        array: Any = torch.from_numpy
    else:
        import jax.numpy as jnp

        array = jnp.asarray
        params = {n: array(p) for n, p in start().items()}
    state = optimizer.init(params)
    for gradient in gradients():
        hparams: Any = optimizer.hparams() | {"lr": lr}
        if backend == "jax":
            hparams = {n: np.float32(v) for n, v in hparams.items()}
        params, state = optimizer.update(
            {n: array(g) for n, g in gradient.items()}, state, params, hparams
        )
    return {n: np.asarray(p.detach() if backend == "torch" else p) for n, p in params.items()}


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", CASES)
def test_updates_are_torchs(name: str, backend: str):
    import torch

    kind, options = CASES[name]
    ours = walk(made(name, backend, **options), backend, 0.05)
    params = {n: torch.nn.Parameter(torch.from_numpy(p)) for n, p in start().items()}
    theirs = getattr(torch.optim, kind)(params.values(), lr=0.05, **options)
    for gradient in gradients():
        for n, p in params.items():
            p.grad = torch.from_numpy(gradient[n])
        theirs.step()
    for n, p in params.items():
        np.testing.assert_allclose(ours[n], p.detach().numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_defaults_are_torchs(name: str):
    """Except SGD's rate, which torch has since 2.0 and we have had before."""
    import inspect

    import torch

    theirs = inspect.signature(getattr(torch.optim, CASES[name][0])).parameters
    for backend in ("torch", "jax"):
        for key, value in made(name, backend).hparams().items():
            if key in ("beta1", "beta2"):
                assert value == theirs["betas"].default[int(key[-1]) - 1]
            elif (name, key) != ("sgd", "lr"):
                assert value == theirs[key].default, key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"weight_decay": -1}, "weight_decay=-1: must be a number >= 0"),
        ("adamw", {"beta1": 1}, r"beta1=1: must be a number in \[0, 1\)"),
        ("rmsprop", {"alpha": 1}, r"alpha=1: must be a number in \[0, 1\)"),
        ("rmsprop", {"momentum": 1.5}, r"momentum=1.5: must be a number in \[0, 1\)"),
        ("rmsprop", {"eps": 0}, "eps=0: must be a number > 0"),
        ("adagrad", {"initial_accumulator_value": -1}, "must be a number >= 0"),
        ("adagrad", {"lr": [0.1, 0]}, "lr=0: must be a number > 0"),
        ("sgd", {"lr": []}, r"lr=\[\]: must be a number > 0"),
        ("sgd", {"lr": "fast"}, "lr='fast': must be a number > 0"),
    ],
)
def test_bad_arguments(name: str, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        made(name, "torch", **options)

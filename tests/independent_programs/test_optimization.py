"""Stable SGD, La-MAML and MC-SGD end where independent programs in float64 end."""

from __future__ import annotations

import pytest
from independent_programs import optimization as programs
from independent_programs.product import CLASS, OPTIMIZERS, compare, on_both, product


@on_both
def test_stable_sgd(optimizer: str, backend: str):
    """The schedule over tasks, down to its floor, and an optimizer that starts afresh."""
    options = {"gamma": 0.5, "lr_min": 0.2 * OPTIMIZERS[optimizer]["lr"]}
    run = product("stable_sgd", backend, optimizer, dropout=None, **options)
    compare(programs.stable_sgd, run, optimizer, **options)


PLAN = {"glances": 2, "replay_batch_size": 8}
LAMAML = {"memory_size": 15, "inner_chunk_size": 5}


@pytest.mark.ci
@on_both
@pytest.mark.parametrize("sync", [True, False])
def test_lamaml(sync: bool, optimizer: str, backend: str):
    """With rates above 0 throughout; theta moves by them, or by the optimizer.

    Under Adam, seed 0 brings a pre-activation within 1e-7 of the ReLU's kink, where float32 and
    float64 take different sides.
    """
    options = LAMAML | {"alpha_init": 0.1, "lr_alpha": 0.1, "sync_update": sync}
    run = product("lamaml", backend, optimizer, **CLASS, **PLAN, **options, seed=1)
    compare(programs.lamaml, run, optimizer, grad_clip=2.0, **options)
    assert min(a.min() for n, a in run.arrays.items() if n.startswith("state/alpha/")) > 0


BELOW_ZERO = {
    "sgd": {"alpha_init": 0.1, "lr_alpha": 3.0, "sync_update": False},
    "adam": {"alpha_init": 0.02, "lr_alpha": 0.3, "sync_update": True},
}


@pytest.mark.ci
@on_both
@pytest.mark.parametrize("inner_relu", [False, True])
def test_lamaml_below_zero(inner_relu: bool, optimizer: str, backend: str):
    """Rates that become negative: the inner step takes them as they are, or relu of them."""
    options = LAMAML | {"inner_relu": inner_relu} | BELOW_ZERO[optimizer]
    run = product("lamaml", backend, optimizer, **CLASS, **PLAN, **options)
    compare(programs.lamaml, run, optimizer, grad_clip=2.0, **options)
    assert min(a.min() for n, a in run.arrays.items() if n.startswith("state/alpha/")) < -0.01


@on_both
def test_mcsgd(optimizer: str, backend: str):
    """The line search of every task."""
    options = {"momentum": 0.5, "epochs": 4}
    lmc = {f"lmc_{n}": v for n, v in options.items()} | {"lmc_lr": 0.05, "lmc_line_samples": 4}
    lmc |= {"lmc_current_samples": None, "lmc_init_position": 0.4}
    run = product("mcsgd", backend, optimizer, **lmc)
    options |= {"lr": 0.05, "points": 4, "position": 0.4}
    compare(programs.mcsgd, run, optimizer, result="kept/w_bar/", **options)

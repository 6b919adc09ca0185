"""KCL ends where an independent program in float64 ends."""

from __future__ import annotations

import pytest
from experiments import every_backend
from independent_programs import kcl as programs
from independent_programs.product import compare, on_both, product

KCL = {"coreset_per_class": 2, "num_bases": 16, "lambda_init": 0.1, "tau": 0.01}


@pytest.mark.ci
@every_backend
def test_kcl(backend: str):
    """Kernel regression, bases, divergence, and the way back through all of them."""
    plain = {"lr": 0.02, "momentum": 0.0, "weight_decay": 0.0}
    run = product("kcl", backend, "sgd", optimizer_options=plain, **KCL)
    compare(programs.kcl, run, "sgd", learner=programs.KCL, optimizer_options=plain, tau=0.01)


@on_both
def test_kcl_moves_the_scalars_of_the_task_alone(optimizer: str, backend: str):
    """Momentum, weight decay and Adam leave other tasks' lambda, gamma and beta where they are.

    beta shifts all logits alike: its gradient is zero, of which Adam must not make steps.
    """
    gentle = {"lr": 0.02 if optimizer == "sgd" else 0.005, "weight_decay": 0.01}
    run = product("kcl", backend, optimizer, optimizer_options=gentle, **KCL)
    compare(programs.kcl, run, optimizer, learner=programs.KCL, optimizer_options=gentle, tau=0.01)

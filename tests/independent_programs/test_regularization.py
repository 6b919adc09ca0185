"""EWC, online EWC, SI, MAS and LFL end where independent programs in float64 end."""

from __future__ import annotations

from itertools import product as product_of

import pytest
from experiments import BACKENDS
from independent_programs import regularization as programs
from independent_programs.product import CLASS, compare, on_both, product

FISHERS = ("empirical", "exact", "sample", "pred", "batched")
OPTIMIZERS = ("sgd", "adam_decay", "adam")
QUICK = [("empirical", "jax", OPTIMIZERS[-1])]  # the JAX cases that `make test` runs
CASES = [
    pytest.param(*case, marks=[pytest.mark.full] if case[1] == "jax" and case not in QUICK else [])
    for case in product_of(FISHERS, BACKENDS, OPTIMIZERS)
]


@pytest.mark.ci
@pytest.mark.parametrize(("fisher", "backend", "optimizer"), CASES)
def test_ewc(fisher: str, optimizer: str, backend: str):
    """One penalty per past task, for every estimate of the Fisher."""
    run = product("ewc", backend, optimizer, ewc_lambda=30.0, fisher=fisher, clip=None)
    compare(programs.ewc, run, optimizer, ewc_lambda=30.0, how=fisher)


@pytest.mark.ci
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_ewc_over_many_steps(seed: int, backend: str):
    """Adam turns an error of the anchor's last digits into full steps, for five tasks of 50."""
    stream = {"num_tasks": 5, "samples_per_task": 100, "batch_size": 10}
    run = product(
        "ewc",
        backend,
        "adam",
        stream=stream,
        backbone={"width": 16},
        training={"epochs_per_task": 5},
        seed=seed,
        ewc_lambda=30.0,
        clip=None,
    )
    compare(programs.ewc, run, "adam", ewc_lambda=30.0)


@on_both
@pytest.mark.parametrize("every", [10, pytest.param(25, marks=pytest.mark.full)])
def test_running_fisher(every: int, optimizer: str, backend: str):
    """It is updated every 10 steps, of which a task has 20, or at its end, and never reset."""
    run = product(
        "ewc",
        backend,
        optimizer,
        training={"epochs_per_task": 5},
        ewc_lambda=0.5,
        fisher_running=True,
        fisher_running_every=every,
        clip=None,
    )
    compare(programs.ewc_running, run, optimizer, ewc_lambda=0.5, every=every)


@on_both
def test_online_ewc(optimizer: str, backend: str):
    """The anchor is that of the latest task, and past importance fades."""
    options = {"ewc_lambda": 30.0, "gamma": 0.8}
    run = product("online_ewc", backend, optimizer, clip=None, **options)
    compare(programs.online_ewc, run, optimizer, **options)


@on_both
def test_si(optimizer: str, backend: str):
    """The path integral takes the task's gradient before clipping and the optimizer's change."""
    options = {"si_lambda": 1.0, "xi": 0.1}
    run = product("si", backend, optimizer, training={"grad_clip": 0.5}, **options)
    compare(programs.si, run, optimizer, grad_clip=0.5, **options)


@on_both
def test_mas(optimizer: str, backend: str):
    """In a class-incremental stream: the outputs are those of the classes seen."""
    run = product("mas", backend, optimizer, **CLASS, mas_lambda=0.5, clip=None)
    compare(programs.mas, run, optimizer, mas_lambda=0.5)


@on_both
def test_lfl(optimizer: str, backend: str):
    """Features stay near the old ones, and the classifier does not change."""
    run = product("lfl", backend, optimizer, lfl_lambda=0.5)
    compare(programs.lfl, run, optimizer, lfl_lambda=0.5)

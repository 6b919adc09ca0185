"""Assertions that an algorithm affects training only as it should."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import assert_close, assert_same_arrays
from experiments import run, shared_run

jax_in_full = pytest.mark.parametrize(
    "backend", ["torch", pytest.param("jax", marks=pytest.mark.full)]
)
"""Run a test on both backends, on JAX only in `make test-all`: tests/parity compares the twins."""

SETTING: dict[str, Any] = {
    # With these options, side effects on statistics, mode or generators change the results.
    "backbone": {"batch_norm": True, "dropout": 0.3},
    "optimizer_options": {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.01},
    "training": {"epochs_per_task": 2, "grad_clip": 1.0},
}


def assert_reduces_to_naive(algo: str, backend: str, **options: Any) -> None:
    """Raise AssertionError unless the run equals naive (on JAX up to rounding)."""
    naive = shared_run("naive", backend, **SETTING)
    trace = run(algo, backend, **SETTING, **options)
    tolerance = 0.0 if backend == "torch" else 1e-5
    assert_close("losses", trace.losses, naive.losses, tolerance)
    kept = {n: a for n, a in trace.arrays.items() if n in naive.arrays}
    assert_same_arrays(kept, naive.arrays, tolerance)
    assert (trace.matrix[-1] == naive.matrix[-1]).all()


def assert_differs_from_naive(algo: str, **options: Any) -> None:
    """Raise AssertionError unless task 1 equals naive to the bit and later tasks differ."""
    naive = shared_run("naive", "torch", **SETTING)
    trace = run(algo, "torch", **SETTING, **options)
    first = len(naive.losses) // 3
    assert_close("losses of task 1", trace.losses[:first], naive.losses[:first], 0.0)
    assert abs(trace.losses[first + 1 :] - naive.losses[first + 1 :]).max() > 1e-3

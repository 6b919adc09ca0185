"""With the same seed, the twins of every algorithm agree step by step and field by field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import assert_close, assert_same_arrays, assert_same_run
from experiments import ALGORITHMS, BACKENDS, Trace, admits, cases, shared_run
from parity.cases import (
    DOUBLE_PRECISION,
    ERROR_GROWTH,
    EXACT_STEPS,
    HEALTHY,
    SETTINGS,
    VARIANTS,
    Case,
    suited,
)

GOLDEN = Path(__file__).with_name("golden.json")
"""Written by `make golden`: algorithm -> task loss of every step, and the final accuracies."""
GOLDEN_SLACK = 10
"""Factor of the tolerance between backends: other processors and versions round differently."""

QUICK = ("naive-momentum", "ewc-momentum", "er-momentum")
"""Cases that `make test` runs."""
IN_CI = {
    "naive": ("sgd", "momentum", "adam", "clip", "task", "class"),
    "ewc": ("momentum", "batch_norm", "class"),
    "er": ("momentum", "batch_norm", "class"),
}
"""Cases that `make ci` runs; of the other algorithms it is "momentum"."""
SLOW_TO_COMPILE = ("agem", "icarl", "kcl", "lamaml", "mcsgd")


def marks_of(algo: str, name: str) -> Any:
    """Return the mark of a case, if `make test` does not run it."""
    if f"{algo}-{name}" in QUICK:
        return ()
    return pytest.mark.ci if name in IN_CI.get(algo, ("momentum",)) else pytest.mark.full


GOLDEN_IN_FULL = [(algo, "jax") for algo in SLOW_TO_COMPILE]
CASES = [
    pytest.param(algo, suited(algo, case), id=f"{algo}-{name}", marks=marks_of(algo, name))
    for algo in ALGORITHMS
    for name, case in {**SETTINGS, **VARIANTS.get(algo, {})}.items()
    if admits(algo, case.spec)
]


def assert_same_case(actual: Trace, desired: Trace, case: Case) -> None:
    """Raise AssertionError unless two runs of a case agree for as long as they must."""
    if case.float32_steps is None:
        assert_same_run(actual, desired, case.tolerance)
        return
    first = slice(case.float32_steps)
    assert_close("losses", actual.losses[first], desired.losses[first], case.tolerance)
    for number, (a, b) in enumerate(zip(actual.steps[first], desired.steps[first], strict=False)):
        assert_same_arrays(a, b, case.tolerance, f"step {number}: ")


@pytest.mark.parametrize(("algo", "case"), CASES)
def test_twins_agree_at_every_step(algo: str, case: Case):
    """Losses, gradients, parameters, statistics, every state field, and the accuracy matrix."""
    by_torch = shared_run(algo, "torch", stepped=True, **case.spec)
    by_jax = shared_run(algo, "jax", stepped=True, **case.spec)
    assert len(by_torch.steps) == len(by_torch.losses) > 0
    wanted = np.float32 if DOUBLE_PRECISION is None else np.float64
    assert by_torch.losses.dtype == by_jax.losses.dtype == wanted
    for trace in (by_torch, by_jax):  # a checkpoint's position is checked against it
        assert trace.algorithm.engine.total_steps == len(trace.losses)
    assert by_torch.losses.max() < HEALTHY, "choose a setting in which this algorithm trains"
    assert_same_case(by_jax, by_torch, case)
    if algo in ERROR_GROWTH:
        exactly = replace(case, tolerance=case.tolerance / ERROR_GROWTH[algo])
        assert_same_case(by_jax, by_torch, replace(exactly, float32_steps=EXACT_STEPS))


@pytest.mark.ci
def test_twins_agree_in_double_precision(tmp_path: Path):
    """So do the cases that float32 is too coarse for, to 1e-9; `make parity` runs all cases."""
    test = f"{__file__}::{test_twins_agree_at_every_step.__name__}"
    chosen = [f"{test}[{name}]" for name in ("kcl-momentum", "lamaml-second_order")]
    plugins = ["-p", "parity.double_precision", "-p", "no:cacheprovider"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "", "-n0", *plugins, *chosen]
        + [f"--basetemp={tmp_path / 'pytest'}"],
        check=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


@pytest.mark.ci
@pytest.mark.parametrize(
    ("algo", "case"),
    [
        pytest.param(*p.values, id=p.id, marks=() if p.id in QUICK else pytest.mark.full)
        for p in CASES
    ],
)
def test_compiled_chunks_agree_with_single_steps(algo: str, case: Case):
    """JAX's program of many steps agrees with its single steps, and with PyTorch's loop."""
    stepped = shared_run(algo, "jax", stepped=True, **case.spec)
    compiled = shared_run(algo, "jax", **case.spec)
    assert_same_case(compiled, stepped, case)
    assert (compiled.correct == stepped.correct).mean() > 0.98
    assert_same_case(compiled, shared_run(algo, "torch", **case.spec), case)


@pytest.mark.parametrize(
    "algo", [pytest.param(a, marks=pytest.mark.full if a == "lamaml" else ()) for a in ALGORITHMS]
)
def test_watching_steps_changes_nothing_on_pytorch(algo: str):
    """A step hook that only reads leaves every bit as it is."""
    watched, alone = (shared_run(algo, "torch", stepped=s) for s in (True, False))
    assert_same_run(watched, alone, 0.0)


@pytest.mark.parametrize(("algo", "backend"), cases(ALGORITHMS, BACKENDS, full=GOLDEN_IN_FULL))
def test_curve_is_golden(algo: str, backend: str, request: pytest.FixtureRequest):
    """The losses equal the checked-in ones, so that a change of numbers is noticed."""
    case = suited(algo, SETTINGS["momentum"])
    trace = shared_run(algo, backend, stepped=True, **case.spec)
    last = trace.matrix[-1]
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    if request.config.getoption("--write-golden") and backend == "torch":
        golden[algo] = {
            "losses": [float(f"{loss:.6g}") for loss in trace.losses],
            "accuracies": [round(float(accuracy), 4) for accuracy in last],
        }
        lines = [f"{json.dumps(a)}: {json.dumps(golden[a])}" for a in sorted(golden)]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    assert algo in golden, "`make golden` writes its curve"
    np.testing.assert_allclose(trace.losses, golden[algo]["losses"], GOLDEN_SLACK * case.tolerance)
    # One prediction of a task's 71 or more may flip.
    np.testing.assert_allclose(last, golden[algo]["accuracies"], atol=0.015)

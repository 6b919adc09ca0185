"""W1's training rates beside hand-written loops and a measured bound; the Fisher and evaluation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import bound
from commands import command
from report import BACKENDS, Row, median, ratio
from training import BOUND, COMPILED, EVALUATED, names_of
from w1 import BATCH, SIZES, Setting

HAND_NAMES = {
    "hand": "hand-written loop, torch",
    f"hand{COMPILED}": f"hand-written loop, torch{COMPILED}",
    "jax": "hand-written jit(scan), jax",
}
FISHER = "per-sample Fisher of a task's samples"
EVALUATION = f"evaluation of {EVALUATED} tasks' test data"


def rows(setting: Setting, repetitions: int) -> list[Row]:
    """Measure both backends, each in a process of its own."""
    return [row for backend in BACKENDS for row in backend_rows(backend, setting, repetitions)]


def backend_rows(
    backend: str, setting: Setting, repetitions: int, names: Sequence[str] | None = None
) -> list[Row]:
    """Measure one backend; `names` of `names_of` in training.py, None = all."""
    arguments = [backend, "--repetitions", str(repetitions), *setting.arguments()]
    arguments += [] if names is None else ["--rates", ",".join(names)]
    measured = json.loads(command("bench/training.py", *arguments))
    rates = measured["rates"]
    told = [
        (title(name, backend), median(found), _compared(name, rates, measured["bounds"]))
        for name, found in rates.items()
    ]
    for what, key in ((FISHER, "fisher_seconds"), (EVALUATION, "evaluation_seconds")):
        if measured[key]:  # they are measured beside ewc
            told.append((f"seqrun {backend}, {what}, s", median(measured[key], 2), ""))
    return told


def titles(backend: str, setting: Setting) -> list[str]:
    """Return what the rows are called when all is measured."""
    told = [title(name, backend) for name in names_of(backend, setting.device)]
    return [*told, *(f"seqrun {backend}, {what}, s" for what in (FISHER, EVALUATION))]


def title(name: str, backend: str) -> str:
    """Return what a rate is called in the table."""
    if name == BOUND:
        return f"bound: products and update of a naive step, beside {backend}, steps/s"
    if name.startswith("hand"):
        return f"{HAND_NAMES['jax' if backend == 'jax' else name]}, naive, steps/s"
    return f"seqrun {backend}, {name}, steps/s"


def _compared(name: str, rates: dict[str, list[float]], bounds: list[Any]) -> str:
    """Say what a rate is of others in the same repetitions."""
    if name == BOUND:
        return parts_of_bound([bound.Bound(*found) for found in bounds])
    kind = COMPILED if name.endswith(COMPILED) else ""
    share = f"; {ratio(rates[name], rates[BOUND])} of the bound" if BOUND in rates else ""
    if name.startswith("hand"):
        return f"1{share}"
    if name.startswith("naive"):
        return f"{ratio(rates[name], rates[f'hand{kind}'])} of hand-written{share}"
    return f"{ratio(rates[f'naive{kind}'], rates[name])} x naive's time per step"


def parts_of_bound(bounds: list[bound.Bound]) -> str:
    """Say what the bound is made of, by medians, and what it is if all traffic is added."""
    by_numpy, by_torch, bandwidth = map(statistics.median, zip(*bounds, strict=True))
    library = "torch.mm" if by_torch <= by_numpy else "NumPy's BLAS"
    work, moved = bound.flops(BATCH, SIZES), bound.update_bytes(SIZES)
    every = sum(bound.traffic(SIZES).values())
    seconds = min(by_numpy, by_torch)
    rate = statistics.median(found.rate(every) for found in bounds)
    return (
        f"{seconds * 1e6:.0f} us of products by {library}, the faster of two "
        f"({work / 1e6:.1f} MFLOP, {work / seconds / 1e9:.0f} GFLOP/s), and "
        f"{moved / bandwidth * 1e6:.0f} us of the update ({moved / 1e6:.1f} MB at "
        f"{bandwidth / 1e9:.0f} GB/s); {rate:.0f} with the traffic of the products added to them "
        f"({every / 1e6:.1f} MB)"
    )

"""Rotated MNIST's training rates beside hand-written loops and a roofline; Fisher, evaluation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace

from commands import command
from report import BACKENDS, Row, median, ratio
from roofline import Roofline, flops, traffic, update_bytes
from rotated_mnist_mlp import SIZES, Setting
from training import COMPILED, EVALUATED, ROOFLINES, names_of, threads_of

from seqrun.system import num_cores

HAND_NAMES = {
    "hand_written": "hand-written loop, torch",
    f"hand_written{COMPILED}": f"hand-written loop, torch{COMPILED}",
    "jax": "hand-written jit(scan), jax",
}
FISHER = "per-sample Fisher of a task's samples"
EVALUATION = f"evaluation of {EVALUATED} tasks' test data"


Key = tuple[str, int]
"""What is measured, as training.py names it, and the CPU threads it has."""


def rows(setting: Setting, repetitions: int) -> list[Row]:
    """Measure both backends, each in processes of its own."""
    return [row for backend in BACKENDS for row in backend_rows(backend, setting, repetitions)]


def backend_rows(
    backend: str, setting: Setting, repetitions: int, names: Sequence[str] | None = None
) -> list[Row]:
    """Measure one backend; `names` of `names_of` in training.py, None = all.

    seqrun's programs have the threads of its rule, the hand-written loops both one thread and one
    per core: what they are compared with is the faster.
    """
    wanted = list(names or names_of(backend, setting.device))
    rates: dict[Key, list[float]] = {key: [] for key in keys(wanted, setting.device)}
    rooflines: dict[str, list[Roofline]] = {name: [] for name in wanted if name in ROOFLINES}
    seconds: dict[str, list[float]] = {"fisher_seconds": [], "evaluation_seconds": []}
    for _ in range(repetitions):
        for threads in sorted({threads for _, threads in rates}):
            together = [name for name, of in rates if of == threads]
            arguments = [backend, "--repetitions", "1", "--rates", ",".join(together)]
            arguments += replace(setting, threads=threads).arguments()
            measured = json.loads(command("bench/training.py", *arguments))
            for name, found in measured["rates"].items():
                rates[name, threads] += found
            for name, parts in measured["rooflines"].items():
                rooflines[name] += [Roofline(*part) for part in parts]
            for what, took in seconds.items():
                took += measured[what]
    told = [
        (title(key, backend, setting.device), median(found), _compared(key, rates, rooflines))
        for key, found in rates.items()
    ]
    for what, key in ((FISHER, "fisher_seconds"), (EVALUATION, "evaluation_seconds")):
        if seconds[key]:  # they are measured beside ewc
            told.append((f"seqrun {backend}, {what}, s", median(seconds[key], 2), ""))
    return told


def keys(names: Sequence[str], device: str) -> list[Key]:
    """Return what is measured: hand-written loops by each number of threads that they may have."""
    counts = sorted({1, num_cores()}) if device == "cpu" else [1]
    return [
        (name, threads)
        for name in names
        for threads in (counts if name.startswith("hand_written") else [threads_of(name, device)])
    ]


def titles(backend: str, setting: Setting) -> list[str]:
    """Return what the rows are called when all is measured."""
    every = keys(names_of(backend, setting.device), setting.device)
    told = [title(key, backend, setting.device) for key in every]
    return [*told, *(f"seqrun {backend}, {what}, s" for what in (FISHER, EVALUATION))]


def title(key: Key, backend: str, device: str) -> str:
    """Return what a rate is called in the table."""
    name, threads = key
    of_threads = f", {threads} thread(s)" if device == "cpu" else ""
    if name in ROOFLINES:
        what = f"products and update of {ROOFLINES[name][0]}'s step"
        what += ", with g_ref made" if ROOFLINES[name][0] == "agem" else ""
        return f"roofline: {what}, beside {backend}{of_threads}, steps/s"
    if name.startswith("hand_written"):
        kind = HAND_NAMES["jax" if backend == "jax" else name]
        return f"{kind}, naive{of_threads}, steps/s"
    return f"seqrun {backend}, {name}{of_threads}, steps/s"


def _compared(key: Key, rates: dict[Key, list[float]], rooflines: dict[str, list[Roofline]]) -> str:
    """Say what a rate is of others in the same repetitions."""
    name, threads = key
    if name in ROOFLINES:
        return parts_of_roofline(ROOFLINES[name][1], rooflines[name])
    kind = COMPILED if name.endswith(COMPILED) else ""
    best = best_by_hand(kind, rates)
    algo = "naive" if name.startswith("hand_written") else name.removesuffix(COMPILED)
    own = next((name for name, (of, _) in ROOFLINES.items() if of == algo), None)
    at_most = rates.get((own, threads)) if own else None
    share = f"; {ratio(rates[key], at_most)} of the roofline" if at_most else ""
    if name.startswith("hand_written"):
        return f"{ratio(rates[key], best)} of the faster{share}"
    if name.startswith("naive"):
        return f"{ratio(rates[key], best)} of hand-written{share}"
    naive = next(found for (other, _), found in rates.items() if other == f"naive{kind}")
    return f"{ratio(naive, rates[key])} x naive's time per step{share}"


def best_by_hand(kind: str, rates: dict[Key, list[float]]) -> list[float]:
    """Return each repetition's fastest hand-written loop of a kind, whatever its threads."""
    found = [of for (name, _), of in rates.items() if name == f"hand_written{kind}"]
    return [max(same) for same in zip(*found, strict=True)]


def parts_of_roofline(batches: Sequence[int], rooflines: list[Roofline]) -> str:
    """Say what the roofline is made of, by medians, and what it is if all traffic is added."""
    by_numpy, by_torch, bandwidth = map(statistics.median, zip(*rooflines, strict=True))
    library = "torch.mm" if by_torch <= by_numpy else "NumPy's BLAS"
    work = sum(flops(batch, SIZES) for batch in batches)
    moved = update_bytes(SIZES)
    every = moved + len(batches) * (sum(traffic(SIZES).values()) - moved)
    seconds = min(by_numpy, by_torch)
    rate = statistics.median(found.rate(every) for found in rooflines)
    return (
        f"{seconds * 1e6:.0f} us of products by {library}, the faster of two "
        f"({work / 1e6:.1f} MFLOP, {work / seconds / 1e9:.0f} GFLOP/s), and "
        f"{moved / bandwidth * 1e6:.0f} us of the update ({moved / 1e6:.1f} MB at "
        f"{bandwidth / 1e9:.0f} GB/s); {rate:.0f} with the traffic of the products added to them "
        f"({every / 1e6:.1f} MB)"
    )

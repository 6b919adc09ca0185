"""Rotated MNIST on a GPU: the table of training rates, and 1 to 256 seeds in one program.

The roofline is not part of it: it is of a CPU. Where a framework finds no GPU, its rows say so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import beside_hand_written
from commands import command, measured
from many_seeds import listed
from report import BACKENDS, Row, median
from rotated_mnist_mlp import Setting

SEEDS = tuple(2**power for power in range(9))
TOGETHER = "jax"
"""The backend that trains several runs in one program."""
NOT_HERE = "not run: no GPU here"


def rows(
    setting: Setting,
    repetitions: int,
    tasks: int,
    seeds: Sequence[int] = SEEDS,
    names: Sequence[str] | None = None,
) -> list[Row]:
    """Measure on the setting's device.

    Args:
        setting: device="cuda"; "cpu" takes the same path.
        repetitions: how often.
        tasks: of the runs with several seeds.
        seeds: numbers of seeds in one program; the first is what the others are held against.
        names: of the training rates; None = all.
    """
    told: list[Row] = []
    for backend in BACKENDS:
        is_there = setting.device == "cpu" or finds_gpu(backend)
        together = [title(number) for number in seeds] if backend == TOGETHER else []
        if not is_there:
            missing = [*beside_hand_written.titles(backend, setting), *together]
            told += [(what, NOT_HERE, "") for what in missing]
            continue
        told += beside_hand_written.backend_rows(backend, setting, repetitions, names)
        if backend == TOGETHER:
            told += _seeds(setting, repetitions, tasks, seeds)
    return told


def title(number: int) -> str:
    """Return what so many seeds are called in the table."""
    return f"Rotated MNIST naive, {TOGETHER}, {number} seed(s) in one program, runs/s"


def finds_gpu(backend: str) -> bool:
    """Return whether a backend finds a GPU, asked in a process that leaves it free again."""
    named = f"from seqrun.algorithms.naive.{backend} import Naive"
    told = f"{named}; print(Naive.engine_type.find_device('auto'))"
    return command("-c", told).split()[-1] == "cuda"


def _seeds(setting: Setting, repetitions: int, tasks: int, seeds: Sequence[int]) -> list[Row]:
    """Interleave repetitions of every number of seeds: whole commands."""
    base = ["algo=naive", f"backend={TOGETHER}", "seeds_strategy=vmap"]
    base += setting.overrides(tasks)
    rates: dict[int, list[float]] = {number: [] for number in seeds}
    training: dict[int, list[float]] = {number: [] for number in seeds}
    for _ in range(repetitions):
        for number in seeds:
            run = measured(*base, listed(number))
            timings = [found["timing"] for found in run.record["runs"]]
            assert len(timings) == number
            rates[number].append(number / run.seconds)
            training[number].append(number / max(t["train_seconds"] for t in timings))
    told: list[Row] = []
    for number, found in rates.items():
        pairs = zip(found, rates[seeds[0]], strict=True)
        gain = statistics.median(a / b for a, b in pairs)
        alone = statistics.median(training[number])
        shown = f"{gain:.2f} x those of {seeds[0]} seed(s); training alone {alone:.3g} runs/s"
        told.append((title(number), median(found, 3), shown))
    return told

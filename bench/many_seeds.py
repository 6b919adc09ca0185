"""Several seeds of W1 in one command: by processes, and one after the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from commands import measured
from report import BACKENDS, Row, median

SEEDS = (1, 2, 5, 10)
Way = tuple[int, str]
"""A number of seeds and a seeds_strategy."""


def listed(number: int) -> str:
    """Return the override of so many seeds."""
    return f"seed=[{','.join(map(str, range(number)))}]" if number > 1 else "seed=0"


def rows(overrides: list[str], repetitions: int, algorithms: Sequence[str]) -> list[Row]:
    """Measure naive at several numbers of seeds, other algorithms at one and the most."""
    most = SEEDS[-1]
    few: list[Way] = [(1, "sequential"), (most, "processes")]
    every: list[Way] = [few[0], *((n, "processes") for n in SEEDS[1:]), (most, "sequential")]
    told: list[Row] = []
    for algo in algorithms:
        for backend in BACKENDS:
            base = [f"algo={algo}", f"backend={backend}", *overrides]
            ways = every if algo == "naive" else few
            told += _by_ways(f"W1 {algo}, {backend}", base, ways, repetitions)
    return told


def _by_ways(what: str, base: list[str], ways: list[Way], repetitions: int) -> list[Row]:
    """Interleave repetitions of every way; the first is the single run."""
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    peaks: dict[Way, float] = dict.fromkeys(ways, 0.0)
    for _ in range(repetitions):
        for number, strategy in ways:
            found = measured(*base, listed(number), f"seeds_strategy={strategy}")
            seconds[number, strategy].append(found.seconds)
            peaks[number, strategy] = max(peaks[number, strategy], found.peak)
    single = seconds[ways[0]]
    told: list[Row] = []
    for (number, strategy), took in seconds.items():
        gain = statistics.median(number * a / b for a, b in zip(single, took, strict=True))
        best = number * min(single) / statistics.median(took)
        told.append(
            (
                f"{what}, {number} seed(s), {strategy}, s",
                median(took, 1),
                f"{gain:.2f} x the throughput of a single run ({best:.2f} x of the best one); "
                f"peak {peaks[number, strategy]:.0f} MiB",
            )
        )
    return told

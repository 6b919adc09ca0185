"""Several seeds of Rotated MNIST in one command: by processes, and one after the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from commands import measured
from report import BACKENDS, Row, median

from seqrun.system import num_cores

SEEDS = (1, 2, 5, 10)
Way = tuple[int, str, int | None]
"""A number of seeds, a seeds_strategy and num_threads; None = seqrun's rule."""


def listed(number: int) -> str:
    """Return the override of so many seeds."""
    return f"seed=[{','.join(map(str, range(number)))}]" if number > 1 else "seed=0"


def rows(overrides: list[str], repetitions: int, algorithms: Sequence[str]) -> list[Row]:
    """Measure naive at several numbers of seeds, other algorithms at one and the most."""
    most = SEEDS[-1]
    single: list[Way] = [(1, "sequential", None), (1, "sequential", num_cores())]
    some: list[Way] = [*single, (most, "processes", None)]
    every: list[Way] = [*single, *((n, "processes", None) for n in SEEDS[1:])]
    every.append((most, "sequential", None))
    told: list[Row] = []
    for algo in algorithms:
        for backend in BACKENDS:
            base = [f"algo={algo}", f"backend={backend}", *overrides]
            ways = every if algo == "naive" else some
            told += _by_ways(f"Rotated MNIST {algo}, {backend}", base, ways, repetitions)
    return told


def _by_ways(what: str, base: list[str], ways: list[Way], repetitions: int) -> list[Row]:
    """Interleave repetitions of every way; single runs are those of one seed."""
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    peaks: dict[Way, float] = dict.fromkeys(ways, 0.0)
    for _ in range(repetitions):
        for way in ways:
            number, strategy, threads = way
            how = [f"seeds_strategy={strategy}"]
            how += [] if threads is None else [f"num_threads={threads}"]
            found = measured(*base, listed(number), *how)
            seconds[way].append(found.seconds)
            peaks[way] = max(peaks[way], found.peak)
    told: list[Row] = []
    for way, took in seconds.items():
        number, strategy, threads = way
        gain, best = over_single(number, took, [s for (n, *_), s in seconds.items() if n == 1])
        how = strategy if threads is None else f"{strategy}, {threads} threads"
        told.append(
            (
                f"{what}, {number} seed(s), {how}, s",
                median(took, 1),
                f"{gain:.2f} x the throughput of the faster single run of each repetition "
                f"({best:.2f} x of the fastest of all); peak {peaks[way]:.0f} MiB",
            )
        )
    return told


def over_single(
    number: int, seconds: Sequence[float], singles: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """Return how many times a single run's throughput so many seeds have.

    Args:
        number: of seeds.
        seconds: that they took together, of each repetition.
        singles: seconds of single runs, of each way to run one and of each repetition.

    Returns:
        The median over repetitions of the ratio to the faster single run of the same repetition,
        and the ratio of the median to the fastest single run of all.
    """
    faster = [min(same) for same in zip(*singles, strict=True)]
    gain = statistics.median(number * a / b for a, b in zip(faster, seconds, strict=True))
    return gain, number * min(faster) / statistics.median(seconds)

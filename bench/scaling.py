"""Naive on Rotated MNIST by tasks and samples: seconds and peak memory of whole commands."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from commands import Measured, measured
from report import BACKENDS, Row, median

TASKS, SAMPLES = (5, 10, 20), (15_000, 30_000, 60_000)


def rows(overrides: list[str], repetitions: int, tasks: int, samples: int | None) -> list[Row]:
    """Measure tasks of `samples`, then samples of `tasks` tasks, of at most `samples` each."""
    told: list[Row] = []
    most = samples or SAMPLES[-1]
    sizes = [number * most // SAMPLES[-1] for number in SAMPLES]
    for backend in BACKENDS:
        base = [f"backend={backend}", *overrides]
        full = [*base, f"benchmark.samples_per_task={most}"]
        told += _growing(full, backend, "benchmark.num_tasks", TASKS, "task", repetitions)
        base.append(f"benchmark.num_tasks={tasks}")
        told += _growing(base, backend, "benchmark.samples_per_task", sizes, "sample", repetitions)
    return told


def _growing(
    base: list[str], backend: str, key: str, numbers: Sequence[int], of: str, repetitions: int
) -> list[Row]:
    """Interleave repetitions of every size: whole runs, and the training time of a task or sample.

    Args:
        base: overrides.
        backend: for the rows.
        key: what grows.
        numbers: its values.
        of: what one of them is.
        repetitions: how often.
    """
    found: dict[int, list[Measured]] = {number: [] for number in numbers}
    for _ in range(repetitions):
        for number, runs in found.items():
            runs.append(measured(*base, f"{key}={number}"))
    each = {n: [_timing(r)["train_seconds"] / n for r in runs] for n, runs in found.items()}
    told: list[Row] = []
    for number, runs in found.items():
        pairs = zip(each[number], each[numbers[0]], strict=True)
        growth = statistics.median(a / b for a, b in pairs)
        evaluation = statistics.median(_timing(run)["eval_seconds"] for run in runs)
        told.append(
            (
                f"Rotated MNIST naive, {backend}, {number} {key.split('.')[1]}, s",
                median([run.seconds for run in runs], 1),
                f"training a {of} takes {growth:.2f} of its time with {numbers[0]}; "
                f"evaluation {evaluation:.1f} s; peak {max(run.peak for run in runs):.0f} MiB",
            )
        )
    return told


def _timing(run: Measured) -> dict[str, float]:
    """Return the seconds that a run recorded."""
    return run.record["runs"][0]["timing"]

"""How W1 naive grows with tasks, samples and seeds: seconds and peak memory of whole commands."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import BACKENDS, ROOT, Row, median

TASKS, SAMPLES, SEEDS = (5, 10, 20), (15_000, 30_000, 60_000), (1, 2, 5, 10)
STEP_SECONDS = 0.2


def resident(pid: int) -> int:
    """Return the bytes of memory of a process and its descendants, shared pages divided."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("Pss:"))
        # Of every thread: a child belongs to the one that started it.
        listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except (OSError, StopIteration):  # it has ended
        return total
    return total + sum(resident(int(child)) for child in " ".join(listed).split())


def measured(*overrides: str) -> tuple[float, float, dict[str, Any]]:
    """Run an experiment; return seconds, peak MiB of all its processes, and results.json."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, "run.py", *overrides, f"hydra.run.dir={folder}/run"]
        started = time.perf_counter()
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL)
        peak = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(STEP_SECONDS):
                peak = max(peak, resident(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
        if code:
            raise subprocess.CalledProcessError(code, arguments)
        record = json.loads(Path(folder, "run", "results.json").read_text())
    return seconds, peak / 2**20, record


def rows(overrides: list[str], repetitions: int, tasks: int) -> list[Row]:
    """Measure tasks, samples of `tasks` tasks, then seeds by processes and one after the other."""
    told: list[Row] = []
    for backend in BACKENDS:
        base = [f"backend={backend}", *overrides]
        told += _growing(base, backend, "benchmark.num_tasks", TASKS, "task")
        base.append(f"benchmark.num_tasks={tasks}")
        told += _growing(base, backend, "benchmark.samples_per_task", SAMPLES, "sample")
        told += _by_seeds(base, backend, repetitions)
    return told


def _growing(base: list[str], backend: str, key: str, numbers: Sequence[int], of: str) -> list[Row]:
    """Measure whole runs, and the training time of each task or sample."""
    told: list[Row] = []
    first = None
    for number in numbers:
        seconds, peak, record = measured(*base, f"{key}={number}")
        timing = record["runs"][0]["timing"]
        work = timing["train_seconds"] / number
        first = first or work
        told.append(
            (
                f"W1 naive, {backend}, {number} {key.split('.')[1]}, s",
                f"{seconds:.1f}",
                f"training a {of} takes {work / first:.2f} of its time with {numbers[0]}; "
                f"evaluation {timing['eval_seconds']:.1f} s; peak {peak:.0f} MiB",
            )
        )
    return told


def _by_seeds(base: list[str], backend: str, repetitions: int) -> list[Row]:
    """Interleave repetitions of every number of seeds, processes and sequential."""
    ways = [(1, "sequential")] + [(n, "processes") for n in SEEDS[1:]]
    ways += [(SEEDS[-1], "sequential")]
    seconds: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
    peaks: dict[tuple[int, str], float] = dict.fromkeys(ways, 0.0)
    for _ in range(repetitions):
        for number, strategy in ways:
            listed = ",".join(map(str, range(number)))
            seeds = f"seed=[{listed}]" if number > 1 else "seed=0"
            took, peak, _ = measured(*base, seeds, f"seeds_strategy={strategy}")
            seconds[number, strategy].append(took)
            peaks[number, strategy] = max(peaks[number, strategy], peak)
    single = seconds[ways[0]]
    told: list[Row] = []
    for (number, strategy), took in seconds.items():
        gain = statistics.median(number * a / b for a, b in zip(single, took, strict=True))
        best = number * min(single) / statistics.median(took)
        told.append(
            (
                f"W1 naive, {backend}, {number} seed(s), {strategy}, s",
                median(took, 1),
                f"{gain:.2f} x the throughput of a single run ({best:.2f} x of the best one); "
                f"peak {peaks[number, strategy]:.0f} MiB",
            )
        )
    return told

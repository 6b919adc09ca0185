"""Measure speed and print one table: python bench/run.py [--repetitions N] [--write].

Work W1: Rotated MNIST, 5 tasks x 60,000 samples, batch 10, 1 epoch, MLP 784-256-256-10, SGD
lr 0.01. Work W2: ResNet18Thin, batch 10, 32 x 32 x 3 random images, SGD lr 0.01. Rates are medians
(min-max) of interleaved repetitions in one process per framework; only ratios of one run are
comparable, since machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
W1 = ["benchmark=rotated_mnist", "benchmark.num_tasks=5", "optimizer.lr=0.01"]
W1 += ["training.evaluate_on=seen"]
BACKENDS = ("torch", "jax")


def command(*arguments: str) -> str:
    """Run a Python command in the project's root and return its stdout."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def median(values: list[float], digits: int = 0) -> str:
    """Return "median (min-max)"."""
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{mid:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratio(over: list[float], under: list[float]) -> str:
    """Return the median of the ratios of interleaved pairs."""
    return f"{statistics.median(a / b for a, b in zip(over, under, strict=True)):.2f}"


def training_rows(repetitions: int) -> list[tuple[str, ...]]:
    """Measure training rates beside hand-written loops, and the Fisher."""
    rows = []
    for backend in BACKENDS:
        measured = json.loads(
            command("bench/training.py", backend, "--repetitions", str(repetitions))
        )
        rates = measured["rates"]
        name = {"torch": "hand-written loop, torch", "jax": "hand-written jit(scan), jax"}[backend]
        rows += [
            (f"{name}, naive, steps/s", median(rates["hand"]), "1"),
            (
                f"seqrun {backend}, naive, steps/s",
                median(rates["naive"]),
                f"{ratio(rates['naive'], rates['hand'])} of hand-written",
            ),
            (
                f"seqrun {backend}, ewc, steps/s",
                median(rates["ewc"]),
                f"{ratio(rates['naive'], rates['ewc'])} x naive's time per step",
            ),
            (
                f"seqrun {backend}, per-sample Fisher of 60,000 samples, s",
                median(measured["fisher_seconds"], 2),
                "",
            ),
        ]
    return rows


def convolution_rows(repetitions: int) -> list[tuple[str, ...]]:
    """Measure W2's training rates beside hand-written loops."""
    rows = []
    for backend in BACKENDS:
        measured = json.loads(
            command("bench/convolution.py", backend, "--repetitions", str(repetitions))
        )
        rates, threads = measured["rates"], measured["execution"]["num_threads"]
        rows += [
            (f"W2 hand-written loop, {backend}, naive, steps/s", median(rates["hand"], 1), "1"),
            (
                f"W2 seqrun {backend}, naive, steps/s",
                median(rates["seqrun"], 1),
                f"{ratio(rates['seqrun'], rates['hand'])} of hand-written, {threads} thread(s)",
            ),
        ]
    return rows


def whole_rows(algo: str) -> list[tuple[str, ...]]:
    """Measure W1 from command to table, by phase."""
    rows = []
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run = [f"algo={algo}", f"backend={backend}", *W1, f"hydra.run.dir={folder}/run"]
            command("run.py", *run)
            total = time.perf_counter() - started
            record = json.loads(Path(folder, "run", "results.json").read_text())
        timing = record["runs"][0]["timing"]
        phases = {k.removesuffix("_seconds"): v for k, v in timing.items() if k.endswith("seconds")}
        rest = total - sum(phases.values())
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
        rows.append(
            (
                f"W1 {algo}, {backend}, command to table, s",
                f"{total:.1f}",
                f"{told}, imports and the rest {rest:.1f}",
            )
        )
    return rows


def start_rows(repetitions: int) -> list[tuple[str, ...]]:
    """Measure start-up: --help, and the default experiment's time before its first step."""
    helps = []
    for _ in range(repetitions):
        started = time.perf_counter()
        command("run.py", "--help")
        helps.append(time.perf_counter() - started)
    rows: list[tuple[str, ...]] = [("run.py --help, s", median(helps, 2), "")]
    for backend in BACKENDS:
        firsts = []
        for _ in range(repetitions):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                command("run.py", f"backend={backend}", f"hydra.run.dir={folder}/run")
                total = time.perf_counter() - started
                record = json.loads(Path(folder, "run", "results.json").read_text())
            timing = record["runs"][0]["timing"]
            firsts.append((total, timing["compile_seconds"], timing["train_seconds"]))
        totals, compiles, trains = zip(*firsts, strict=True)
        rows.append(
            (
                f"default experiment, {backend}, s",
                median(list(totals), 1),
                f"of it compilation {statistics.median(compiles):.1f}, "
                f"training {statistics.median(trains):.1f}",
            )
        )
    return rows


def data_rows(repetitions: int) -> list[tuple[str, ...]]:
    """Measure rotating a task of 60,000 images."""
    import numpy as np

    from seqrun.benchmarks.rotation import rotate

    images = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        rotate(images, 36.0)
        seconds.append(time.perf_counter() - started)
    return [("rotate 60,000 28 x 28 images (bilinear), s", median(seconds, 2), "")]


def loading_rows() -> list[tuple[str, ...]]:
    """Measure preparing data as large as Tiny ImageNet, decoding, and 20 tasks, with memory."""
    lines = command("bench/loading.py").splitlines()[:-1]  # the last one is of the machine
    return [(*line.split(": ", 1), "") for line in lines]


def machine() -> str:
    """Describe the machine and the packages in a line."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "jax", "numpy"))
    return f"{cpu}, {cores} cores, Python {platform.python_version()}, {packages}"


def main() -> None:
    """Print the table; with --write, put it into bench/RESULTS.md too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="rewrite bench/RESULTS.md")
    arguments = parser.parse_args()
    n = arguments.repetitions
    rows = training_rows(n) + convolution_rows(n) + whole_rows("naive") + whole_rows("ewc")
    rows += start_rows(n) + data_rows(n) + loading_rows()
    table = Table("what", "median (min-max)", "ratio or parts", title="W1 and start-up")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(machine())
    if arguments.write:
        told = f'`make bench ARGS="--write --repetitions {n}"` on {machine()}.'
        lines = ["# Speed", "", told, ""]
        lines += [(__doc__ or "").split("\n\n")[1].replace("\n", " ").strip(), ""]
        lines += ["| what | median (min-max) | ratio or parts |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        (ROOT / "bench" / "RESULTS.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

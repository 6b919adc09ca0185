"""W1 on the peers of .venv-peers beside seqrun, in interleaved repetitions.

A peer runs with the data loaders' workers and the threads with which it is fastest.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import BACKENDS, ROOT, Row, command, median

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PEERS = {
    "avalanche-lib": ("avalanche_lib.py", "torch"),
    "sequel-core torch": ("sequel_core.py", "torch"),
    "sequel-core jax": ("sequel_core.py", "jax"),
}
ALGORITHMS = ("naive", "ewc", "er", "agem")
CONVOLUTION = ("avalanche-lib", "sequel-core torch")
"""Peers with W2's network; the JAX side of sequel-core has one with another stem."""
SETTINGS = tuple(itertools.product((1, 2), (0, 2)))  # threads, the data loaders' workers
PRINTED = ("imports", "data", "training", "rest")
NOT_THERE: Row = ("peers: `make peers` installs them", "not run", "")


def ask(peer: str, algo: str, file: Path, setting: tuple[int, int], *more: str) -> dict[str, Any]:
    """Run a peer and return its answer."""
    script, backend = PEERS[peer]
    threads, workers = map(str, setting)
    asked = [algo, str(file), "--backend", backend, "--threads", threads, "--workers", workers]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "NPROC": threads}
    arguments = [f"bench/peers/{script}", *asked, *more]
    printed = command(*arguments, python=PYTHON, environment=environment)
    return json.loads(printed.splitlines()[-1])


def fastest_setting(peer: str, algo: str, file: Path, steps: int, data: str) -> tuple[int, int]:
    """Return the threads and workers with which a peer trains fastest, by short trials."""
    few = ("--steps", str(max(steps, 20)), "--data", data)
    tried = {setting: ask(peer, algo, file, setting, *few)["rate"] for setting in SETTINGS}
    shown = ", ".join(f"{t} thread(s) {w} workers {rate:.0f}" for (t, w), rate in tried.items())
    sys.stderr.write(f"{algo}, {peer}, {data}, steps/s: {shown}\n")
    return max(tried, key=tried.__getitem__)


def seqrun(algo: str, samples: int | None) -> dict[str, tuple[float, str]]:
    """Measure each backend once; return the better program's rate and how it was compiled."""
    found = {}
    for backend in BACKENDS:
        names = [algo, f"{algo} compiled"] if backend == "torch" else [algo]
        arguments = [backend, "--repetitions", "1", "--rates", ",".join(names)]
        arguments += [] if samples is None else ["--samples", str(samples)]
        rates = json.loads(command("bench/training.py", *arguments))["rates"]
        name = max(names, key=lambda n: rates[n][0])
        found[f"seqrun {backend}"] = rates[name][0], name
    return found


def rows(
    repetitions: int, steps: int, samples: int | None, data: str, algorithms: tuple[str, ...]
) -> list[Row]:
    """Measure training rates; `data` as in bench/peers/work.py."""
    if not PYTHON.exists():
        return [NOT_THERE]
    told: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tasks.npz")
        command("bench/peers/tasks.py", str(file), "--tasks", "2")
        for algo in algorithms:
            told += _algorithm(algo, file, repetitions, steps, samples, data)
    return told


def _algorithm(
    algo: str, file: Path, repetitions: int, steps: int, samples: int | None, data: str
) -> list[Row]:
    """Choose every peer's setting, then measure."""
    how = ("--steps", str(steps), "--data", data)
    settings = {peer: fastest_setting(peer, algo, file, steps // 3, data) for peer in PEERS}
    peers: dict[str, list[dict[str, Any]]] = {peer: [] for peer in PEERS}
    ours: dict[str, list[tuple[float, str]]] = {}
    for _ in range(repetitions):
        for name, found in seqrun(algo, samples).items():
            ours.setdefault(name, []).append(found)
        for peer, answers in peers.items():
            answers.append(ask(peer, algo, file, settings[peer], *how))
    told = []
    for peer, answers in peers.items():
        threads, workers = settings[peer]
        reading = statistics.median(a["parts"]["reading_rate"] for a in answers)
        versions = ", ".join(f"{k} {v}" for k, v in answers[0]["versions"].items())
        told.append(
            (
                f"W1 {algo}, {peer}, steps/s",
                median([a["rate"] for a in answers]),
                f"{threads} thread(s), {workers} workers; reading its batches alone "
                f"{reading:.0f}/s ({data}); {versions}",
            )
        )
    fastest = [max(a["rate"] for a in same) for same in zip(*peers.values(), strict=True)]
    for name, found in ours.items():
        rates = [rate for rate, _ in found]
        over = [a / b for a, b in zip(rates, fastest, strict=True)]
        told.append(
            (
                f"W1 {algo}, {name} ({found[-1][1]}), steps/s",
                median(rates),
                f"{median(over, 1)} x the faster peer",
            )
        )
    better = [max(rate for rate, _ in same) for same in zip(*ours.values(), strict=True)]
    over = [a / b for a, b in zip(better, fastest, strict=True)]
    told.append((f"W1 {algo}, seqrun's better backend over the faster peer", median(over, 1), ""))
    return told


def whole_rows(algo: str, samples: int | None, ours: float) -> list[Row]:
    """Measure the peers' whole programs on W1, images turned whenever one is read, as theirs do.

    Args:
        algo: one of ALGORITHMS.
        samples: of each task; None = all.
        ours: the seconds of seqrun's faster backend.
    """
    if not PYTHON.exists():
        return [NOT_THERE]
    told = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tasks.npz")
        command("bench/peers/tasks.py", str(file), "--tasks", "5")
        for peer in PEERS:
            more = ["--whole", "--data", "turning"]
            more += [] if samples is None else ["--samples", str(samples)]
            setting = fastest_setting(peer, algo, file, 200, "turning")
            parts = ask(peer, algo, file, setting, *more)["parts"]
            shown = f"{setting[0]} thread(s), {setting[1]} workers: "
            shown += ", ".join(f"{name} {parts[name]:.1f}" for name in PRINTED)
            total = parts["total"]
            shown += f"; {total / ours:.1f} x seqrun's better backend"
            told.append((f"W1 {algo}, {peer}, whole program, s", f"{total:.1f}", shown))
    return told


def convolution_rows(repetitions: int, ours: float, steps: int = 30) -> list[Row]:
    """Measure the peers' training rates on W2, their images float tensors in memory.

    Args:
        repetitions: how often.
        ours: steps per second of seqrun's faster backend.
        steps: that are timed, after a few.
    """
    if not PYTHON.exists():
        return [NOT_THERE]
    told = []
    warm_up = 5
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "noise.npz")
        command("bench/peers/tasks.py", str(file), "--noise", str((steps + warm_up) * 10))
        how = ("--network", "resnet18_thin", "--data", "tensors", "--warm-up", str(warm_up))
        how += ("--steps", str(steps))
        for peer in CONVOLUTION:
            rates = {
                threads: [
                    ask(peer, "naive", file, (threads, 0), *how)["rate"] for _ in range(repetitions)
                ]
                for threads in (1, 2)
            }
            threads = max(rates, key=lambda count: statistics.median(rates[count]))
            over = ours / statistics.median(rates[threads])
            shown = f"{threads} thread(s); seqrun's better backend is {over:.1f} x"
            told.append((f"W2 naive, {peer}, steps/s", median(rates[threads], 1), shown))
    return told

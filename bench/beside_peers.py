"""Rotated MNIST's training rates of the peers beside seqrun's, in interleaved repetitions.

Each peer has the threads and workers with which it is fastest, seqrun the threads of its rule.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from commands import command
from peer_commands import NOT_THERE, PEERS, PYTHON, ask, fastest_setting
from report import BACKENDS, Row, median
from rotated_mnist_mlp import Setting
from training import threads_of

ALGORITHMS = ("naive", "ewc", "er", "agem")


def seqrun(algo: str, samples: int | None) -> dict[str, tuple[float, str]]:
    """Measure each backend once; return the better program's rate and how it was compiled."""
    found = {}
    for backend in BACKENDS:
        names = [algo, f"{algo} compiled"] if backend == "torch" else [algo]
        setting = Setting(samples=samples, threads=threads_of(algo, "cpu"))
        arguments = [backend, "--repetitions", "1", "--rates", ",".join(names)]
        arguments += setting.arguments()
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
                f"Rotated MNIST {algo}, {peer}, steps/s",
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
                f"Rotated MNIST {algo}, {name} ({found[-1][1]}), steps/s",
                median(rates),
                f"{median(over, 1)} x the faster peer",
            )
        )
    better = [max(rate for rate, _ in same) for same in zip(*ours.values(), strict=True)]
    over = [a / b for a, b in zip(better, fastest, strict=True)]
    what = f"Rotated MNIST {algo}, seqrun's better backend over the faster peer"
    told.append((what, median(over, 1), ""))
    return told

"""Whole programs, from the command to the table of results, beside those of the peers.

Ours twice, one after the other: "cold" with empty folders of compiled programs, "warm" with what
that run left there. The peers keep no compiled programs. Repetitions are interleaved.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import peer_commands as peers
from commands import Measured, command, compiling_in, measured
from report import BACKENDS, Row, median
from rotated_mnist_mlp import OVERRIDES, sized

ALGORITHMS = ("naive", "ewc")
PRINTED = ("imports", "data", "training", "rest")
CACHES = ("cold", "warm")


def rows(
    algorithms: tuple[str, ...], repetitions: int, tasks: int, samples: int | None
) -> list[Row]:
    """Measure those of `algorithms` that this part is about."""
    told: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tasks.npz")
        if peers.PYTHON.exists():
            command("bench/peers/tasks.py", str(file), "--tasks", str(tasks))
        for algo in (a for a in ALGORITHMS if a in algorithms):
            told += _algorithm(algo, file, repetitions, tasks, samples)
    return told if peers.PYTHON.exists() else [*told, peers.NOT_THERE]


def _algorithm(
    algo: str, file: Path, repetitions: int, tasks: int, samples: int | None
) -> list[Row]:
    """Interleave repetitions of both backends, cold and warm, and of every peer."""
    overrides = [f"algo={algo}", *OVERRIDES, f"benchmark.num_tasks={tasks}", *sized(samples)]
    others = tuple(peers.PEERS) if peers.PYTHON.exists() else ()
    settings = {peer: peers.fastest_setting(peer, algo, file, 200, "turning") for peer in others}
    asked = ["--whole", "--data", "turning"]
    asked += [] if samples is None else ["--samples", str(samples)]
    ours: dict[tuple[str, str], list[Measured]] = {(b, c): [] for b in BACKENDS for c in CACHES}
    parts: dict[str, list[dict[str, float]]] = {peer: [] for peer in others}
    for _ in range(repetitions):
        for backend in BACKENDS:
            with tempfile.TemporaryDirectory() as folder:
                environment = compiling_in(Path(folder))
                for caches in CACHES:
                    run = measured(f"backend={backend}", *overrides, environment=environment)
                    ours[backend, caches].append(run)
        for peer, found in parts.items():
            found.append(peers.ask(peer, algo, file, settings[peer], *asked)["parts"])
    told: list[Row] = [_own(algo, *way, runs) for way, runs in ours.items()]
    warm = zip(*(ours[backend, "warm"] for backend in BACKENDS), strict=True)
    better = [min(run.seconds for run in same) for same in warm]
    return told + [_peer(algo, p, settings[p], found, better) for p, found in parts.items()]


def _own(algo: str, backend: str, caches: str, runs: list[Measured]) -> Row:
    """Say what our program took, and its phases by their medians."""
    timings = [run.record["runs"][0]["timing"] for run in runs]
    names = [name for name in timings[0] if name.endswith("_seconds")]
    phases = [f"{n.removesuffix('_seconds')} {_mid([t[n] for t in timings]):.1f}" for n in names]
    rest = [run.seconds - sum(t[n] for n in names) for run, t in zip(runs, timings, strict=True)]
    what = f"Rotated MNIST {algo}, {backend}, command to table, compilation caches {caches}, s"
    shown = f"{', '.join(phases)}, imports and the rest {_mid(rest):.1f}"
    return what, median([run.seconds for run in runs], 1), shown


def _peer(
    algo: str,
    peer: str,
    setting: tuple[int, int],
    found: list[dict[str, float]],
    better: list[float],
) -> Row:
    """Say what a peer's program took; `better`: seconds of our faster backend, warm."""
    totals = [parts["total"] for parts in found]
    over = [a / b for a, b in zip(totals, better, strict=True)]
    shown = ", ".join(f"{name} {_mid([parts[name] for parts in found]):.1f}" for name in PRINTED)
    shown = f"{setting[0]} thread(s), {setting[1]} workers: {shown}"
    shown += f"; {median(over, 1)} x seqrun's better backend, warm"
    return f"Rotated MNIST {algo}, {peer}, whole program, s", median(totals, 1), shown


def _mid(values: list[float]) -> float:
    return statistics.median(values)

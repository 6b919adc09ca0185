"""ResNet18Thin's training rates: seqrun, hand-written loops and peers, in interleaved repetitions.

torch's hand-written loops have a network of their own, JAX's has seqrun's: it holds the loop to
account and not the network.

Each of a repetition's measurements is a process of its own, which warms up before it is timed. The
peers' images are float tensors in memory. sequel-core's JAX side has no such network: its ResNet
has another stem, and a network of ours in it would no longer be the peer.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import peer_commands as peers
from commands import command
from report import Row, median, ratio

WAYS = (("torch",), ("torch", "--compiled"), ("jax",))
PEERS = ("avalanche-lib", "sequel-core torch")
LEFT_OUT: Row = (
    "ResNet18Thin naive, sequel-core jax, steps/s",
    "not run",
    "its ResNet has another stem: the peer would have to be rewritten",
)
WARM_UP = 5
Rates = dict[str, list[float]]


def rows(repetitions: int, steps: int) -> list[Row]:
    """Measure; `steps` of each are timed."""
    ours: dict[tuple[str, ...], Rates] = {way: {} for way in WAYS}
    threads: dict[tuple[str, ...], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "noise.npz")
        chosen = _threads_of_peers(file, steps) if peers.PYTHON.exists() else {}
        beside: Rates = {peer: [] for peer in chosen}
        for _ in range(repetitions):
            for way, rates in ours.items():
                threads[way] = _measure(way, steps, rates)
            for peer, found in beside.items():
                found.append(_peer_rate(peer, file, chosen[peer], steps))
    told = [row for way, rates in ours.items() for row in _own(way, rates, threads[way])]
    better = [max(same) for same in zip(*(r["seqrun"] for r in ours.values()), strict=True)]
    for peer, found in beside.items():
        over = [a / b for a, b in zip(better, found, strict=True)]
        shown = f"{chosen[peer]} thread(s); seqrun's better backend is {median(over, 1)} x"
        told.append((f"ResNet18Thin naive, {peer}, steps/s", median(found, 1), shown))
    return [*told, LEFT_OUT] if chosen else [*told, peers.NOT_THERE]


def _measure(way: tuple[str, ...], steps: int, rates: Rates) -> int:
    """Add a repetition's rates of one way to train; return seqrun's threads."""
    told = ("--repetitions", "1", "--steps", str(steps))
    measured = json.loads(command("bench/convolution.py", *way, *told))
    execution = measured["execution"]
    assert ("--compiled" in way) == (execution["compiled"] == "network"), "not as asked"
    for name, found in measured["rates"].items():
        rates.setdefault(name, []).extend(found)
    return execution["num_threads"]


def _own(way: tuple[str, ...], rates: Rates, threads: int) -> list[Row]:
    """Return the rows of hand-written loops and of seqrun beside the best of them."""
    kind = f"{way[0]}{', network compiled' if '--compiled' in way else ''}"
    hands = {name: found for name, found in rates.items() if name != "seqrun"}
    best = max(hands, key=lambda name: statistics.median(hands[name]))
    told: list[Row] = []
    for name, found in hands.items():
        shown = f"ResNet18Thin hand-written loop, {kind} {name}".rstrip()
        share = "1" if name == best else ratio(found, hands[best])
        told.append((f"{shown}, naive, steps/s", median(found, 1), share))
    ours = rates["seqrun"]
    share = f"{ratio(ours, hands[best])} of the best of these, {threads} thread(s)"
    return [*told, (f"ResNet18Thin seqrun {kind}, naive, steps/s", median(ours, 1), share)]


def _threads_of_peers(file: Path, steps: int) -> dict[str, int]:
    """Write the peers' images; return the threads with which each is faster, by short trials."""
    command("bench/peers/tasks.py", str(file), "--noise", str((steps + WARM_UP) * 10))
    few = max(steps // 3, 1)
    return {
        peer: max((1, 2), key=lambda threads: _peer_rate(peer, file, threads, few))
        for peer in PEERS
    }


def _peer_rate(peer: str, file: Path, threads: int, steps: int) -> float:
    """Return a peer's steps per second."""
    how = ("--network", "resnet18_thin", "--data", "tensors", "--warm-up", str(WARM_UP))
    return peers.ask(peer, "naive", file, (threads, 0), *how, "--steps", str(steps))["rate"]

"""The peers of .venv-peers, run as commands.

A peer runs with the data loaders' workers and the threads with which it is fastest.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from commands import ROOT, command
from report import Row

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PEERS = {
    "avalanche-lib": ("avalanche_lib.py", "torch"),
    "sequel-core torch": ("sequel_core.py", "torch"),
    "sequel-core jax": ("sequel_core.py", "jax"),
}
SETTINGS = tuple(itertools.product((1, 2), (0, 2)))  # threads, the data loaders' workers
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

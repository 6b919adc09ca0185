"""Short experiments for tests of whole runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from seqrun.cli import preflight
from seqrun.records import checkpoint
from seqrun.records.checkpoint import load

CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    "backbone.width=8", "benchmark.num_tasks=2", "benchmark.samples_per_task=40",
    "callbacks=[metrics,checkpoint]", "callbacks.checkpoint.every_epoch=true", "logger=[local]",
    "logger.local.figures=false", "training.epochs_per_task=2", "training.chunk_steps=2",
    "device=cpu", "num_threads=1",
]  # fmt: skip


@cache
def _config(overrides: tuple[str, ...]) -> dict[str, Any]:
    (job,) = preflight.check([*SMALL, *overrides], CONF)
    return job.config


def config_of(*overrides: str) -> dict[str, Any]:
    """Return the configuration of a command line; do not change it."""
    return _config(overrides)


def good_checkpoints(directory: Path, config_hash: str) -> list[str]:
    """Read all checkpoints of a run and return their names."""
    folder = directory / checkpoint.FOLDER
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        load(folder / name, config_hash=config_hash)
    return names

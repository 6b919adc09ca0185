"""seqrun: a Hydra-first experiment runner for continual learning on PyTorch and JAX."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"
CONF = (Path(__file__).parent / "conf").resolve()
"""The program's configuration: a link to conf/ in a checkout, a copy in an installed package."""

_MOVED = {
    "checkpoint": "seqrun.records.checkpoint",
    "experiment": "seqrun.config.build",
    "preflight": "seqrun.cli.preflight",
    "runner": "seqrun.runs.runner",
}
"""Modules that were moved; `from seqrun import <name>` still finds them."""


def __getattr__(name: str) -> ModuleType:
    """Import a moved module by its old name."""
    if name in _MOVED:
        return import_module(_MOVED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

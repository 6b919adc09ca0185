"""seqrun: a Hydra-first experiment runner for continual learning on PyTorch and JAX."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_MOVED = {
    "checkpoint": "seqrun.records.checkpoint",
    "experiment": "seqrun.config.build",
    "preflight": "seqrun.cli.preflight",
    "runner": "seqrun.runs.runner",
}
"""Modules that `from seqrun import <name>` found before they had a package of their own."""


def __getattr__(name: str) -> ModuleType:
    """Import a module by the name that it had."""
    if name in _MOVED:
        return import_module(_MOVED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

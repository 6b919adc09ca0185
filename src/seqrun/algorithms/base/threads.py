"""The fixed rule for CPU threads."""

from __future__ import annotations


def default_num_threads(backend: str) -> int:
    """Return the CPU threads of one run: a function of the configuration, never of timing."""
    return 1

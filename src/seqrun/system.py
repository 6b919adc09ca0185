"""The machine and the process: its cores, and how it ends."""

from __future__ import annotations

import logging
import os
import sys


def leave(status: int) -> None:
    """End this process, as the last of atexit's functions: register it before others are.

    Python would then search all that torch and its compiler imported for what can be freed, for
    over a second. Threads that are no daemons have ended by now. Functions that were registered
    before this one, as by tools that watch a process from its start, are not called.

    Args:
        status: that the process ends with.
    """
    logging.shutdown()  # registered when it was imported, before this
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return  # to what nobody reads any more, or is full; Python says so, and with which status
    os._exit(status)


def num_cores() -> int:
    """Return the number of cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

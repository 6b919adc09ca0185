"""How this process ends."""

from __future__ import annotations

import logging
import os
import sys


def exit_process(status: int) -> None:
    """End this process, as the last of atexit's functions: register it before others are.

    Otherwise Python would search all that torch and its compiler imported for what can be freed,
    which takes over a second. Threads that are not daemons have ended by now. Functions that were
    registered before this one, as by tools that watch a process from its start, are not called.

    Args:
        status: the exit status.
    """
    logging.shutdown()  # registered when it was imported, before this
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return  # nobody reads any more, or the disk is full: Python says so, and sets the status
    os._exit(status)

"""The end of a process that imported a framework."""

from __future__ import annotations

import logging
import os
import sys


def leave(status: int) -> None:
    """End this process, as the last of atexit's functions: register it before others are.

    Python would then search all that torch and its compiler imported for what can be freed, for
    over a second. Threads have ended by now.

    Args:
        status: that the process ends with.
    """
    logging.shutdown()  # registered when it was imported, before this
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

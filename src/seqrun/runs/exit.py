"""End the process without Python's slow clean-up."""

from __future__ import annotations

import logging
import os
import sys


def exit_process(status: int) -> None:
    """End this process at once; register it with atexit before other functions, so it runs last.

    It saves over a second, in which Python would look through everything that torch and its
    compiler imported for memory to free. All threads except daemons have ended by then. Functions
    registered earlier, such as those of tools that watch the whole process, are not called.

    Args:
        status: the exit status.
    """
    logging.shutdown()  # registered with atexit before this function, so not called otherwise
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return  # no reader, or a full disk: Python reports it and sets the exit status
    os._exit(status)

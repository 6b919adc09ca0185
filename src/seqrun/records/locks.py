"""One process at a time in a run directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqrun.checks import ConfigError

LOCK_FILE = ".lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which ends with the process whatever happens to it.

    Raises:
        ConfigError: another process holds it, or the directory cannot be written to or locked.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"hydra.run.dir={directory}: cannot be written to: {error}") from error
    try:
        try:
            taken = _take(descriptor)
        except OSError as error:  # some network file systems have no locks
            raise ConfigError(f"hydra.run.dir={directory}: cannot be locked: {error}") from error
        if not taken:
            raise ConfigError(f"hydra.run.dir={directory}: another process is running in it")
        yield
    finally:
        os.close(descriptor)


def refuse_locked(directory: Path) -> None:
    """Raise ConfigError if a process is running in a run directory."""
    if is_locked(directory):
        raise ConfigError(f"hydra.run.dir={directory}: another process is running in it")


def is_locked(directory: Path) -> bool:
    """Return whether a process is running in a run directory."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _take(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

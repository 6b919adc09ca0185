"""One process at a time in a run directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from seqrun.checks import ConfigError

LOCK_FILE = ".lock"


def _lock(directory: Path) -> FileLock:
    """Return the lock of a run directory; the kernel releases it when its process ends.

    Where the file system has no such locks, taking it is an error: a lock that is a mere file would
    outlive a killed process. The file stays when the lock is released.
    """
    return FileLock(directory / LOCK_FILE, blocking=False, preserve_lock_file=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which is created if it is missing.

    Raises:
        ConfigError: another process holds it, or the directory cannot be written to or locked.
    """
    try:
        held = _lock(directory).acquire()
    except Timeout:
        raise ConfigError(f"hydra.run.dir={directory}: another process is running in it") from None
    except OSError as error:
        message = f"hydra.run.dir={directory}: cannot be written to or locked: {error}"
        raise ConfigError(message) from error
    with held:
        yield


def refuse_locked(directory: Path) -> None:
    """Raise ConfigError if a process is running in a run directory."""
    if is_locked(directory):
        raise ConfigError(f"hydra.run.dir={directory}: another process is running in it")


def is_locked(directory: Path) -> bool:
    """Return whether a process is running in a run directory."""
    try:
        if (directory / LOCK_FILE).exists():  # taking the lock would create it
            with _lock(directory):
                pass
    except OSError as error:
        return isinstance(error, Timeout)
    return False

"""Where compiled programs are kept between runs."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock

from seqrun.checks import ConfigError

PATIENCE = 3.0
"""Seconds after which a user wants to know what a run does."""
VARIABLES = {"jax": "JAX_COMPILATION_CACHE_DIR", "torch": "TORCHINDUCTOR_CACHE_DIR"}
"""What each framework itself reads for the folder of its compiled programs."""


def compilation_cache(framework: str) -> str | None:
    """Return the folder of a framework's compiled programs for this kind of processor.

    What the framework's own variable says, else below $XDG_CACHE_HOME or ~/.cache. Processors of
    another kind, on a cluster with a shared home, get a folder of their own: a program compiled
    for one need not run on another.

    Args:
        framework: "jax" or "torch".

    Returns:
        The folder, which is there and can be written; None = the home's cannot.

    Raises:
        ConfigError: the variable's cannot.
    """
    variable = VARIABLES[framework]
    chosen = os.environ.get(variable)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = Path(chosen or home / "seqrun" / f"{framework}-{_processor()}")
    try:
        folder = folder.expanduser()  # which a user without a home has not
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        writable = False
    else:
        writable = os.access(folder, os.W_OK | os.X_OK)
    if chosen and not writable:
        raise ConfigError(f"{variable}={chosen}: is no folder that can be written")
    return str(folder) if writable else None


@contextmanager
def compiling(framework: str, what: str, key: str) -> Iterator[None]:
    """Compile within the block, and say so on stderr if that takes longer than `PATIENCE` seconds.

    Of several processes that compile the same program at once, one does, and the others then find
    it in the cache.

    Args:
        framework: "jax" or "torch".
        what: what is compiled, for the message.
        key: differs between programs.
    """
    folder = compilation_cache(framework)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    message = f"compiling {what}: this takes a while, once; later runs of its kind reuse it\n"
    timer = threading.Timer(PATIENCE, sys.stderr.write, [message])
    timer.daemon = True
    timer.start()
    try:
        with FileLock(Path(folder, f"{digest}.lock")) if folder else nullcontext():
            yield
    finally:
        timer.cancel()


def _processor() -> str:
    """Return a short digest of what the processor can do."""
    about = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        about += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(about.encode()).hexdigest()[:12]

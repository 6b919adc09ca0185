"""Where compiled programs are kept between runs."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from seqrun.checks import ConfigError

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


def _processor() -> str:
    """Return a short digest of what the processor can do."""
    about = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        about += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(about.encode()).hexdigest()[:12]

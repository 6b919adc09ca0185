"""Where compiled programs are kept between runs."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


VARIABLES = {"jax": "JAX_COMPILATION_CACHE_DIR", "torch": "TORCHINDUCTOR_CACHE_DIR"}
"""What each framework itself reads for the folder of its compiled programs."""


def compilation_cache(framework: str) -> str:
    """Return the folder of a framework's compiled programs for this kind of processor.

    What the framework's own variable says, else below $XDG_CACHE_HOME or ~/.cache. Processors of
    another kind, on a cluster with a shared home, get a folder of their own: a program compiled
    for one need not run on another.

    Args:
        framework: "jax" or "torch".
    """
    chosen = os.environ.get(VARIABLES[framework])
    if chosen:
        return chosen
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(home / "seqrun" / f"{framework}-{_processor()}")


def _processor() -> str:
    """Return a short digest of what the processor can do."""
    about = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        about += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(about.encode()).hexdigest()[:12]

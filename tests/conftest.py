"""What all tests share: helper modules beside this file, and one compilation cache per session."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `from experiments import build`

# Many small runs compile the same JAX program: once a session is enough. The environment is read
# when jax is first imported, here or in a process that a test starts.
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that `make golden` uses."""
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/parity/golden.json anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start an empty cache; workers of one session share it."""
    if not hasattr(config, "workerinput"):
        os.environ |= _CACHE | {_FOLDER: tempfile.mkdtemp(prefix="seqrun-tests-")}


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache; say last how to run what was skipped for want of data."""
    if hasattr(config, "workerinput"):
        return
    shutil.rmtree(os.environ[_FOLDER], ignore_errors=True)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if number := sum("set SEQRUN_DATA" in str(report.longrepr) for report in skipped):
        reporter.write_line(
            f"{number} skipped tests need MNIST: `SEQRUN_DATA=DIR make test` runs them, "
            "if DIR has MNIST/raw"
        )

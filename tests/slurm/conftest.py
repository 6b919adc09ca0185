"""A SLURM cluster of one node on this machine, for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Start SLURM, return the environment that its commands need, and stop SLURM at the end."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs SLURM (apt-get install slurm-wlm munge); no {', '.join(missing)}")
    if os.getuid() != 0:
        pytest.skip("needs root, to start SLURM's daemons")
    state = tmp_path_factory.mktemp("slurm")
    for folder in (state, *state.parents[:3]):  # munge refuses a path that others cannot enter
        folder.chmod(folder.stat().st_mode | 0o011)
    up = ["bash", str(HERE / "slurm_up.sh"), str(state)]
    done = subprocess.run(up, capture_output=True, encoding="utf-8", timeout=120)
    try:
        if done.returncode:
            pytest.fail(f"SLURM did not come up: {done.stdout}{done.stderr}")
        yield {"SLURM_CONF": str(state / "slurm.conf")}
    finally:
        down = ["bash", str(HERE / "slurm_down.sh"), str(state), "--purge"]
        subprocess.run(down, capture_output=True, timeout=120)

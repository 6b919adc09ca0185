"""Hydra's own launchers run our jobs: with skipping, continuing and the summary."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from sweeps.conftest import TINY

PLUGINS = {
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}


@pytest.mark.ci
@pytest.mark.parametrize("launcher", PLUGINS)
def test_a_launcher_of_hydras(start, launcher):
    if not importlib.util.find_spec(PLUGINS[launcher]):
        pytest.skip(f"needs {launcher}: pip install hydra-{launcher}-launcher")
    argv = ("-m", *TINY, "seed=0,1", f"hydra/launcher={launcher}")
    ends = []
    for _ in range(2):
        out, err = (process := start(*argv)).communicate(timeout=300)
        assert process.returncode == 0, out + err
        rows = [line.split()[:2] for line in out.splitlines() if line.startswith("seed=")]
        assert rows[-2:] == [["seed=0", "completed"], ["seed=1", "completed"]]
        assert "2 of 2 jobs completed; sweep_runs/grid/summary.md" in out
        records = Path("sweep_runs", "grid").glob("*/results.json")
        ends.append(sorted(path.stat().st_mtime_ns for path in records))
    assert len(ends[0]) == 2 and ends[0] == ends[1]  # completed jobs are skipped

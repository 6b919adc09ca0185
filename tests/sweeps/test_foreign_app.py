"""Where seqrun is installed, other Hydra programs work as if it were not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APP = """\
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=None, config_name="app")
def main(cfg):
    print("job", HydraConfig.get().job.num, cfg.x, HydraConfig.get().launcher._target_)

if __name__ == "__main__":
    from hydra.core.config_store import ConfigStore
    ConfigStore.instance().store(name="app", node={"x": 0})
    main()
"""


@pytest.mark.ci
def test_a_multirun_of_another_program(tmp_path: Path):
    """It has Hydra's own launcher and sweeper."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "app.py", "-m", "x=1,2"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    launcher = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    jobs = [line for line in done.stdout.splitlines() if line.startswith("job")]
    assert jobs == [f"job {number} {number + 1} {launcher}" for number in (0, 1)]

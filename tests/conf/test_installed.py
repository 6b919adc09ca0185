"""The wheel is an application: it carries its configuration and the command `seqrun`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from seqrun import CONF

SMALL = ("algo=naive", "benchmark.num_tasks=2", "benchmark.samples_per_task=50")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(CONF.parent)], check=True, timeout=300)
    (found,) = folder.glob("seqrun-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it into a fresh environment, which borrows the packages it needs from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(site, "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    bin_folder = Path(sysconfig.get_path("scripts", vars={"base": str(folder)}))
    command = [str(bin_folder / "python"), "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*command, str(wheel)], check=True, timeout=120)
    return bin_folder


def run(command: list[str], where: Path) -> str:
    """Run a command from an empty directory, and return what it prints."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=where, env=clean, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ci
def test_the_wheel_has_all_configuration(wheel: Path):
    """Files of conf/, sweeps/ and reproductions/, as they are in the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        carried = {
            name.removeprefix("seqrun/conf/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith("seqrun/conf/") and name.endswith(".yaml")
        }
    folders = {"": CONF, "sweeps/": CONF / "sweeps", "reproductions/": CONF / "reproductions"}
    for prefix, folder in folders.items():
        for path in folder.resolve().rglob("*.yaml"):
            name = prefix + path.relative_to(folder.resolve()).as_posix()
            assert carried[name] == path.read_bytes()
    assert {"config.yaml", "algo/ewc.yaml", "sweeps/seeds.yaml"} <= carried.keys()


@pytest.mark.ci
def test_an_installed_seqrun_runs_from_anywhere(installed: Path, tmp_path: Path):
    seqrun, python = str(installed / "seqrun"), str(installed / "python")
    where = run([python, "-c", "import seqrun; print(seqrun.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    last = run([seqrun, *SMALL], tmp_path).splitlines()[-1]
    again = run([python, "-m", "seqrun", *SMALL], tmp_path).splitlines()[-1]
    assert last.startswith("average accuracy") and last.split(" · ")[-1] == again.split(" · ")[-1]
    (directory,) = (tmp_path / "runs").iterdir()
    assert json.loads((directory / "results.json").read_text())["status"] == "completed"
    run([seqrun, "-m", *SMALL, "seed=0,1"], tmp_path)
    assert len(list(tmp_path.glob("sweep_runs/grid/*/results.json"))) == 2
    assert "derpp" in run([seqrun, "list"], tmp_path)
    assert "1612.00796" in run([seqrun, "explain", "ewc"], tmp_path)
    run([seqrun, "report", "runs"], tmp_path)
    assert (tmp_path / "report" / "index.html").is_file()
    run([seqrun, "reproductions=hsu2018/domain_ewc", "--cfg", "job"], tmp_path)

"""Multiruns on a real SLURM, with arrays, preemption and kills, give the results of local runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from seqrun.cli.listing import CONF

RUN = Path(__file__).parents[2] / "run.py"
ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.poll_seconds=1", "hydra.sweep.dir=cluster")
SMALL = ("benchmark.num_tasks=2", "benchmark.samples_per_task=60", "backbone.width=16")
LONG = (
    "-m", "algo=er", "backbone.width=32", "benchmark.num_tasks=2", "training.epochs_per_task=30",
    "training.chunk_steps=20", "callbacks.checkpoint.every_steps=50", "logger.local.figures=false",
    "seed=0,1",
)  # fmt: skip


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def begin(slurm, tmp_path, monkeypatch) -> Callable[..., subprocess.Popen]:
    """Start run.py with SLURM's environment."""
    monkeypatch.chdir(tmp_path)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(RUN.parent / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return lambda *argv: subprocess.Popen([sys.executable, str(RUN), *argv], **quiet)


@pytest.fixture
def finish(begin) -> Callable[..., str]:
    """Run run.py to its end and return its output."""

    def run(*argv: str, status: int = 0) -> str:
        process = begin(*argv)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, out + err
        return out + err

    return run


def records() -> dict[int, dict]:
    """Return seed -> record of every run so far."""
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in Path("cluster").glob("*/results.json")
    ]
    return {record["seeds"][0]: record for record in found}


def directory(seed: int) -> Path:
    """Return a seed's run directory."""
    return Path("cluster") / records()[seed]["config_hash"]


def job_id(seed: int) -> str:
    """Return SLURM's job id of a seed."""
    submitted = json.loads(Path("cluster/.slurm/submitted.json").read_text(encoding="utf-8"))
    return submitted[str(directory(seed).absolute())]


def kept(seed: int) -> list[Path]:
    """Return the checkpoints of a seed."""
    return list(directory(seed).glob("checkpoints/*/state.json")) if seed in records() else []


def control(*command: str) -> str:
    """Run a SLURM command."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same(*folders: Path) -> None:
    """Compare the measurements of two sweeps, to the bit."""
    for name in ("accuracy_matrix.csv", "metrics.jsonl"):
        a, b = ({p.parent.name: p.read_bytes() for p in f.glob(f"*/{name}")} for f in folders)
        assert a and a == b, name
    a, b = ((f / "summary.csv").read_bytes() for f in folders)
    assert a == b


@pytest.mark.ci
def test_preempted_and_killed_jobs_end_the_same(begin, finish):
    """One is preempted, requeued and resumes; one is killed, and the next command runs it."""
    process = begin(*LONG, *ON_SLURM)
    wait_for(lambda: kept(0) and kept(1), process)
    assert job_id(0).split("_")[0] == job_id(1).split("_")[0]  # an array
    control("scancel", "--signal=USR2", job_id(0))
    control("scancel", "--signal=KILL", job_id(1))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert records()[0]["status"] == "completed"
    assert control("squeue", "-h", "--states=all", "-o", "%i", "-j", job_id(0))
    log = Path("cluster", ".slurm", f"{job_id(0)}_0_log.out").read_text(encoding="utf-8")
    assert log.count("Starting with") == 2 and "continues at step" in log
    assert "seed=1: failed: SLURM's job" in err
    assert "1 of 2 jobs completed, 1 failed" in out.splitlines()[-1]
    printed = finish(*LONG, *ON_SLURM)
    assert "submitted 1 jobs" in printed and "seed=0: completed before" in printed
    finish(*LONG, "hydra.sweep.dir=local")
    assert_same(Path("cluster"), Path("local"))


@pytest.mark.ci
def test_a_requeued_job_saves_first(begin):
    """`scontrol requeue` and preemption by priority send SIGTERM, and SLURM requeues the job."""
    process = begin(*LONG, *ON_SLURM, "callbacks.checkpoint.every_steps=100000")
    wait_for(lambda: (Path("cluster") / ".slurm").exists() and len(records()) == 2, process)
    wait_for(lambda: records()[0]["runs"], process)
    control("scontrol", "requeue", job_id(0))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    log = Path("cluster", ".slurm", f"{job_id(0)}_0_log.out").read_text(encoding="utf-8")
    assert "continues at step" in log  # a checkpoint that the signal caused


@pytest.mark.ci
def test_jobs_are_frozen_and_found_again(begin, finish, tmp_path):
    """conf/ is edited while a job waits, and the launcher is killed; the next waits for the job."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    argv = ("-m", "--config-path", str(conf), *SMALL, "algo=naive", "seed=3", *ON_SLURM)
    held = "+hydra.launcher.additional_parameters.hold=true"
    process = begin(*argv, held)
    submitted = Path("cluster/.slurm/submitted.json")
    wait_for(submitted.exists, process)
    process.kill()
    process.communicate()
    (number,) = json.loads(submitted.read_text(encoding="utf-8")).values()
    file = conf / "optimizer" / "sgd.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("lr:", "lr: 9 #"), encoding="utf-8")
    control("scontrol", "release", number)
    deadline = time.monotonic() + 100
    while not any(record["status"] == "completed" for record in records().values()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (path,) = Path("cluster").glob("*/config.yaml")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["optimizer"]["lr"] == 0.05
    file.write_text(text, encoding="utf-8")
    printed = finish(*argv)
    assert "submitted" not in printed and "1 of 1 jobs completed" in printed


@pytest.mark.ci
def test_a_failed_job_is_reported_with_its_reason(finish):
    argv = ("-m", *SMALL, "algo=naive", "optimizer.lr=1e30,0.1", *ON_SLURM)
    printed = finish(*argv, status=1)
    assert "failed: TrainingDiverged: the loss is nan at task 1" in printed
    assert "1 of 2 jobs completed, 1 failed" in printed


@pytest.mark.ci
def test_a_partition_that_does_not_exist(finish):
    argv = ("-m", *SMALL, "seed=0,1", *ON_SLURM, "hydra.launcher.partition=gpu")
    printed = finish(*argv, status=2)
    assert "error: hydra/launcher=slurm: " in printed and "partition" in printed
    assert "Traceback" not in printed


@pytest.mark.ci
def test_without_slurm(finish, monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    printed = finish("-m", *SMALL, "seed=0,1", *ON_SLURM, status=2)
    told = "needs SLURM, which runs on Linux; there is no sbatch here"
    assert printed == f"error: hydra/launcher=slurm: {told}\n"
    assert not Path("cluster").exists()


@pytest.mark.ci
def test_arrays_of_the_size_that_the_cluster_allows_and_other_keys(begin):
    """The test's cluster allows three jobs in an array."""
    keys = {"comment": "mine", "nodes": "1", "name": "grid", "stderr_to_stdout": "true"}
    keys |= {"mem_per_cpu": "200M", "cpus_per_task": "1", "tasks_per_node": "2"}
    options = [f"hydra.launcher.{key}={value}" for key, value in keys.items()]
    argv = ("-m", *SMALL, "algo=naive", "seed=0,1,2,3", *ON_SLURM, *options)
    process = begin(*argv, "+hydra.launcher.additional_parameters.hold=true")
    wait_for(lambda: len(ids()) == 4, process)
    assert sorted(Counter(number.split("_")[0] for number in ids()).values()) == [1, 3]
    shown = control("scontrol", "show", "job", ids()[0])
    for text in ("JobName=grid", "Comment=mine", "NumTasks=2", "MinMemoryCPU=200M"):
        assert text in shown
    for number in {number.split("_")[0] for number in ids()}:
        control("scontrol", "release", number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "4 of 4 jobs completed" in out
    assert not list(Path("cluster/.slurm").glob("*_log.err"))


def ids() -> list[str]:
    """Return SLURM's ids of the jobs that were submitted."""
    path = Path("cluster/.slurm/submitted.json")
    return list(json.loads(path.read_text(encoding="utf-8")).values()) if path.exists() else []


@pytest.mark.parametrize("late", [True, False])
def test_a_job_that_squeue_lists_late(late, tmp_path, monkeypatch):
    """It is waited for; one that squeue never shows has ended, whatever became of it."""
    from hydra_plugins.seqrun import slurm
    from seqrun.config.experiment import Experiment
    from seqrun.sweeps import jobs
    from seqrun.sweeps.summary import Outcome, SweepJob

    monkeypatch.setattr(slurm, "LATE", 60.0 if late else 0.0)
    seen = iter([{}, {}, {"7_0": "RUNNING"}, {}, {}, {}])
    monkeypatch.setattr(slurm, "_queue", lambda: next(seen))
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    job = SweepJob(
        number=0, name="a", overrides=(), experiment=Experiment({}), directory=tmp_path / "a"
    )
    failed = Outcome(overrides=(), directory=job.directory, status="failed", error="gone")
    monkeypatch.setattr(jobs, "recorded_outcome", lambda *args, **kwargs: failed)
    launcher = object.__new__(slurm.SlurmLauncher)
    launcher.submitit_folder, launcher.ending, launcher.poll_seconds = tmp_path, "err", 1
    assert launcher._wait([job], {job.directory: "7_0"}) == [failed]
    assert len(list(seen)) == (1 if late else 4)


@pytest.mark.ci
def test_hydras_own_launcher(finish, tmp_path, monkeypatch):
    """submitit_slurm runs our jobs, with our summary; it asks sacct, which this cluster lacks."""
    sacct = tmp_path / "bin" / "sacct"
    sacct.parent.mkdir()
    sacct.write_text(
        "#!/bin/bash\n"
        "jobs=()\n"
        'while (($#)); do [[ $1 == -j ]] && jobs+=("$2"); shift; done\n'
        "echo 'JobID|State|NodeList'\n"
        'squeue -h --array --states=all --jobs="$(IFS=,; echo "${jobs[*]}")" -o "%i|%T|%N"\n',
        encoding="utf-8",
    )
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sacct.parent}:{os.environ['PATH']}")
    argv = ("-m", *SMALL, "algo=naive", "seed=0,1", "hydra.sweep.dir=cluster")
    out = finish(*argv, "hydra/launcher=submitit_slurm", "hydra.launcher.comment=mine")
    assert "2 of 2 jobs completed" in out and len(records()) == 2

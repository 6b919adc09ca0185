"""Grids from the command line: completed jobs are skipped, failed ones do not stop the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from sweeps.conftest import MINE, TINY

from seqrun.cli.listing import CONF

SEEDS = ("-m", *TINY, "seed=0,1,2")
GRID = Path("sweep_runs") / "grid"


def records(directory: Path = GRID) -> dict[int, dict]:
    """Return seed -> record of every run in the sweep's directory."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in directory.glob("*/results.json")
    ]
    return {record["seeds"][0]: record for record in found}


@pytest.mark.ci
def test_a_multirun_ends_with_a_summary_and_continues(cli):
    status, out, err = cli(*SEEDS)
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[-4:-1]] == [
        [f"seed={seed}", "completed"] for seed in (0, 1, 2)
    ]
    assert lines[-1] == "3 of 3 jobs completed; sweep_runs/grid/summary.md"
    assert {p.name for p in GRID.iterdir()} >= {"summary.csv", "summary.md", "figures"}
    for record in records().values():
        assert (GRID / record["config_hash"] / "results.json").exists()
    before = {path: path.stat().st_mtime_ns for path in GRID.glob("*/results.json")}
    summary = (GRID / "summary.csv").read_bytes()
    status, out, err = cli(*SEEDS)
    assert status == 0 and err.count("completed before") == 3
    assert {path: path.stat().st_mtime_ns for path in GRID.glob("*/results.json")} == before
    assert (GRID / "summary.csv").read_bytes() == summary
    status, out, err = cli("-m", *TINY, "seed=0,1,2,3")
    assert err.count("completed before") == 3 and len(records()) == 4
    assert out.splitlines()[-1].startswith("4 of 4 jobs completed")


@pytest.mark.ci
def test_a_failed_job_stops_no_other_and_is_tried_again(cli, mypkg):
    (mypkg / "do").write_text("raise RuntimeError('the disk is full')", encoding="utf-8")
    status, out, err = cli(*SEEDS, *MINE)
    assert status == 1
    assert "[2/3] seed=1: failed: RuntimeError: the disk is full" in err
    assert "Traceback" not in err
    assert {s: r["status"] for s, r in records().items()} == {
        0: "completed", 1: "failed", 2: "completed",
    }  # fmt: skip
    assert "failed: seed=1: RuntimeError: the disk is full (in " in out
    assert out.splitlines()[-1].startswith("2 of 3 jobs completed, 1 failed: the same command")
    assert "the disk is full" in (GRID / "summary.md").read_text(encoding="utf-8")
    status, out, err = cli(*SEEDS, *MINE)  # the disk is no longer full
    assert status == 0 and err.count("completed before") == 2
    assert {r["status"] for r in records().values()} == {"completed"}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "status"),
    [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.full)],
)
def test_a_signal_ends_the_multirun_after_a_checkpoint(cli, mypkg, name, status):
    (mypkg / "do").write_text(f"os.kill(os.getpid(), signal.{name})", encoding="utf-8")
    ended, out, err = cli(*SEEDS, *MINE)
    assert ended == status
    assert err.endswith("interrupted: 1 of 3 jobs are done; the same command continues\n")
    assert {s: r["status"] for s, r in records().items()} == {0: "completed", 1: "interrupted"}
    for path in GRID.glob("*/config.yaml"):  # as after a kill of a run that has just begun
        if '"interrupted"' in (path.parent / "results.json").read_text(encoding="utf-8"):
            path.unlink()
    ended, out, err = cli(*SEEDS, *MINE)
    assert ended == 0 and err.count("completed before") == 1
    assert len(list(GRID.glob("*/config.yaml"))) == 3
    assert out.splitlines()[-1].startswith("3 of 3 jobs completed")


@pytest.mark.ci
def test_jobs_are_frozen_when_the_multirun_starts(cli, mypkg, tmp_path):
    """Editing conf/ while the second of three jobs runs changes none of them."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "sweeps").mkdir(exist_ok=True)
    file = conf / "optimizer" / "sgd.yaml"
    edit = "p.write_text(p.read_text().replace('lr:', 'lr: 9 #'))"
    (mypkg / "do").write_text(f"p = pathlib.Path({str(file)!r}); {edit}", encoding="utf-8")
    status, out, _ = cli("--config-path", str(conf), *SEEDS, *MINE)
    assert status == 0 and "lr: 9 #" in file.read_text(encoding="utf-8")
    rates = [
        yaml.safe_load(p.read_text(encoding="utf-8"))["optimizer"]["lr"]
        for p in GRID.glob("*/config.yaml")
    ]
    assert len(rates) == 3 and set(rates) == {0.05}


@pytest.mark.ci
def test_dry_run_lists_the_jobs_and_touches_nothing(cli, elsewhere):
    status, out, err = cli(*SEEDS, "--dry-run")
    assert (status, err, list(elsewhere.iterdir())) == (0, "", [])
    assert out.splitlines()[:3] == ["new  seed=0", "new  seed=1", "new  seed=2"]
    assert "3 jobs, 0 completed, 3 to run: no estimate of time" in out
    cli("-m", *TINY, "seed=0,1")
    before = sorted(elsewhere.rglob("*"))
    for path, seconds in zip(sorted(GRID.glob("*/results.json")), (100.0, 140.0), strict=True):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["runs"][0]["timing"] = {"train_seconds": seconds - 10, "eval_seconds": 10}
        path.write_text(json.dumps(record), encoding="utf-8")
    status, out, err = cli("-m", *TINY, "seed=0,1,2,3,4", "--dry-run")
    assert sorted(elsewhere.rglob("*")) == before
    assert out.count("completed  seed=") == 2
    # The median of 100 and 140, three times.
    assert "5 jobs, 2 completed, 3 to run: about 6 min one after the other, judging by 2" in out
    # Twice as many samples take twice as long.
    _, out, _ = cli("-m", *TINY, "seed=0,1", "training.epochs_per_task=2", "--dry-run")
    assert "2 jobs, 0 completed, 2 to run: about 8 min one after the other, judging by 2" in out
    # The time of a run in a group is that of the whole group.
    record["execution"]["strategy"] = "vmap"
    path.write_text(json.dumps(record), encoding="utf-8")
    _, out, _ = cli("-m", *TINY, "seed=0,1,2,3,4", "--dry-run")
    alone = json.loads(min(GRID.glob("*/results.json")).read_text(encoding="utf-8"))["runs"][0][
        "timing"
    ]
    minutes = round(3 * sum(alone.values()) / 60)
    assert f"about {minutes} min one after the other, judging by 1 completed" in out
    status, out, err = cli(*SEEDS, "--dry-run", "optimizer.lr=-1")
    assert status == 2 and "optimizer.lr=-1" in err


@pytest.mark.ci
@pytest.mark.full
def test_resume_never_sets_done_jobs_aside_once(cli):
    cli("-m", *TINY, "seed=0,1")
    cli("-m", *TINY, "seed=0,1", "resume=never")
    names = sorted(path.name for path in GRID.iterdir() if (path / "results.json").exists())
    assert len(names) == 4 and sum(name.endswith(".1") for name in names) == 2


@pytest.mark.ci
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0: must be an integer >= 1"),
        ("hydra.launcher.retries=-1", "hydra.launcher.retries=-1: must be an integer >= 0"),
    ],
)
def test_bad_arguments_of_a_launcher(cli, elsewhere, override, said):
    status, _, err = cli(*SEEDS, "hydra/launcher=local_processes", override)
    assert (status, list(elsewhere.iterdir())) == (2, [])
    assert err == f"error: {said}\n"


@pytest.mark.ci
def test_jobs_of_one_process_have_the_threads_that_each_has_by_itself(start, tmp_path):
    """JAX fixes their number when it starts: it starts anew for a job of another number."""
    wide = "backbone.width=1500"
    options = ("algo=naive", "backend=jax", "benchmark.num_tasks=2", "benchmark.batch_size=256")
    place = tmp_path / "alone"
    for argv in (
        ("-m", *options, "backbone.width=16,1500", "seed=0,1"),
        (*options, wide, "seed=0", f"hydra.run.dir={place}"),
    ):
        out, err = (job := start(*argv)).communicate()
        assert job.returncode == 0, err
        assert "num_threads" not in err
    alone = json.loads((place / "results.json").read_text(encoding="utf-8"))
    assert alone["execution"]["num_threads"] == 2
    job = Path("sweep_runs") / "grid" / alone["config_hash"]
    beside = json.loads((job / "results.json").read_text(encoding="utf-8"))
    assert beside["execution"]["num_threads"] == 2
    last = Path("checkpoints") / max(p.name for p in (place / "checkpoints").iterdir())
    weights = last / "tensors.safetensors"
    assert (job / weights).read_bytes() == (place / weights).read_bytes()


@pytest.mark.ci
def test_nine_jobs_print_twenty_lines(cli):
    """One for each as it ends, and a list; what the runs print is kept beside them."""
    tiny = [option for option in TINY if not option.startswith("logger")]
    rates = ("optimizer.lr=0.01,0.02,0.03", "seed=0,1,2", "benchmark.samples_per_task=20")
    status, out, err = cli("-m", *tiny, *rates)
    assert status == 0 and len(out.splitlines()) + len(err.splitlines()) <= 20
    logs = list((GRID / "logs").iterdir())
    assert len(logs) == 9
    assert all("accuracy (%) on test data" in log.read_text(encoding="utf-8") for log in logs)
    table = (GRID / "summary.md").read_text(encoding="utf-8").split("## Results")[1]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| naive")][:3]
    means = [float(row[4].split("±")[0]) for row in rows]
    assert len(means) == 3 and means == sorted(means, reverse=True)

"""hydra/launcher=vectorized: jobs in one program leave the directories of jobs that ran alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweeps.conftest import MINE, TINY
from sweeps.test_killed import completed, kill_when

SHORT = (*TINY, "backend=jax", "algo=ewc", "backbone.n_hidden_layers=1", "logger=[local]")
SHORT += ("logger.local.figures=false", "hydra/launcher=vectorized")
LR, LAMBDA = "optimizer.lr=0.05,1e18", "algo.ewc_lambda=10,300"


def records(directory: Path) -> dict[str, dict[str, Any]]:
    """Return config hash -> record."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in directory.glob("*/results.json")
    ]
    return {record["config_hash"]: record for record in found}


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def assert_same_jobs(one: Path, other: Path, digests: set[str]) -> None:
    """Raise AssertionError unless both directories have the same records, up to rounding."""
    for digest in digests:
        a, b = (records(place)[digest] for place in (one, other))
        assert a["status"] == b["status"] == "completed"
        x, y = a["runs"][0], b["runs"][0]
        assert x["accuracy_matrix"] == y["accuracy_matrix"] and x["metrics"] == y["metrics"]
        np.testing.assert_allclose(
            x["train_loss"]["per_task"], y["train_loss"]["per_task"], rtol=1e-5
        )
        assert (one / digest / "config.yaml").read_text(encoding="utf-8").splitlines()[1:] == (
            other / digest / "config.yaml"
        ).read_text(encoding="utf-8").splitlines()[1:]
        assert files(one / digest) == files(other / digest)


@pytest.mark.ci
def test_a_grid_with_two_that_diverge(cli):
    """lr x lambda: half of the jobs fail, and the others give the numbers of runs alone."""
    status, out, err = cli("-m", *SHORT, LR, LAMBDA, "hydra.sweep.dir=one")
    assert status == 1
    assert "4 jobs in one program" in err and "runs alone" not in err
    assert err.count("on a CPU hydra/launcher=local_processes is faster") == 1
    assert err.count("failed: TrainingDiverged: the loss is") == 2
    assert "Traceback" not in err and "task 1/2" not in out + err
    assert out.splitlines()[-1].startswith("2 of 4 jobs completed, 2 failed")
    assert {r["execution"]["strategy"] for r in records(Path("one")).values() if r["runs"]} == {
        "vmap"
    }
    good = {d for d, r in records(Path("one")).items() if r["status"] == "completed"}
    status, _, _ = cli("-m", *SHORT[:-1], "optimizer.lr=0.05", LAMBDA, "hydra.sweep.dir=other")
    assert status == 0 and len(good) == 2
    assert_same_jobs(Path("one"), Path("other"), good)
    status, _, err = cli("-m", *SHORT, "optimizer.lr=0.05", LAMBDA, "hydra.sweep.dir=one")
    assert status == 0 and err.count("completed before") == 2 and "in one program" not in err


@pytest.mark.full
def test_groups_and_what_runs_alone(cli):
    """Two structures make two groups; a job of another backend or a unique structure runs alone."""
    grid = ("seed=0,1", "algo.fisher=empirical,exact")
    status, _, err = cli("-m", *SHORT, *grid, "hydra.sweep.dir=one")
    assert status == 0 and err.count("2 jobs in one program") == 2
    status, _, err = cli("-m", *SHORT, "backend=jax,torch", "algo.fisher=pred", "seed=0")
    assert status == 0
    assert "backend=torch: runs alone: backend=torch: only JAX trains several runs" in err
    assert "backend=jax: runs alone: there is no other job to share its programs with" in err


@pytest.mark.full
def test_a_killed_grid_ends_the_same(start, cli):
    """SIGKILL in the middle of a task; then the same command."""
    longer = [o for o in SHORT if not o.startswith("algo")] + ["algo=er", "algo.memory_size=20"]
    longer += ["training.epochs_per_task=30", "training.chunk_steps=2"]
    longer += ["callbacks.checkpoint.every_epoch=true"]
    grid = ("-m", *longer, "optimizer.lr=0.05,0.1", "seed=0,1")
    assert cli(*grid, "hydra.sweep.dir=whole")[0] == 0
    assert cli(*grid, "hydra/launcher=basic", "hydra.sweep.dir=alone")[0] == 0
    cut = Path("cut")
    process = start(*grid, f"hydra.sweep.dir={cut}")
    kill_when(process, lambda: len(list(cut.glob("*/checkpoints/*"))) >= 6)
    assert completed(cut) == 0
    process = start(*grid, f"hydra.sweep.dir={cut}")
    kept = records(cut).keys()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(kept) == 4 and "4 jobs in one program" in err
    assert_same_jobs(cut, Path("whole"), set(kept))
    assert_same_jobs(cut, Path("alone"), set(kept))


@pytest.mark.full
def test_a_signal_ends_all(start):
    longest = (*SHORT, "training.epochs_per_task=4000", "training.chunk_steps=2")
    grid = ("-m", *longest, "seed=0,1,2,3", "hydra.sweep.dir=cut")
    process = start(*grid, "callbacks.checkpoint.every_epoch=true")
    kill = Path("cut")
    while len(list(kill.glob("*/checkpoints/*"))) < 4:
        assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.endswith("interrupted: 0 of 4 jobs are done; the same command continues\n")
    assert {r["status"] for r in records(kill).values()} == {"interrupted"}


@pytest.mark.ci
def test_a_point_that_a_search_proposes_twice(cli):
    """It is run once, and both trials get its value."""
    search = ("hydra/sweeper=search", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=3")
    run = (*SHORT, "hydra.sweep.dir=one")
    status, out, err = cli("-m", *run, *search, "optimizer.lr=choice(0.05)")
    assert status == 0 and "failed" not in err
    assert "best of 3 completed trials" in out
    assert len(records(Path("one"))) == 1


@pytest.mark.full
def test_batches_of_a_search(cli):
    """Optuna's trials, three at a time, in one program."""
    search = ("hydra/sweeper=search", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3")
    space = ("algo.ewc_lambda=tag(log, interval(1, 100))", "optimizer.lr=interval(0.01, 0.1)")
    status, out, err = cli("-m", *SHORT, *search, *space)
    assert status == 0 and err.count("3 jobs in one program") == 2
    assert err.count("on a CPU hydra/launcher=local_processes is faster") == 1
    assert "best of 6 completed trials" in out


@pytest.mark.full
def test_a_callback_that_sees_every_step(cli, mypkg):
    """It is host code, so its jobs run alone."""
    (mypkg / "mypkg.py").write_text(
        "from seqrun.callbacks import BaseCallback\n"
        "class Does(BaseCallback):\n"
        "    def on_after_backward(self, run, step): ...\n",
        encoding="utf-8",
    )
    status, _, err = cli("-m", *SHORT, *MINE, "seed=0,1")
    assert status == 0
    assert err.count("runs alone: callbacks.mine: must see every step on the host") == 2
    seeds = [o for o in SHORT if not o.startswith("hydra")]
    status, _, err = cli(*seeds, *MINE, "seed=[0,1]", "seeds_strategy=vmap")
    assert status == 2 and "seeds_strategy=vmap: must be auto, processes or sequential" in err

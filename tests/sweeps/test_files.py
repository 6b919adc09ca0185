"""The files of sweeps/ compose with any experiment."""

from __future__ import annotations

import pytest

from seqrun.cli import preflight
from seqrun.cli.listing import CONF, files, path_name

SWEEPS = [path_name(CONF / "sweeps", path) for path in files(CONF / "sweeps")]
JOBS = {"seeds": 5, "learning_rate": 7, "ewc_lambda": 7, "batch_size_lr": 12}


@pytest.mark.ci
@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize(
    "experiment",
    [(), pytest.param(("benchmark=split_digits", "backend=jax"), marks=pytest.mark.full)],
)
def test_composes(elsewhere, name, experiment):
    jobs = preflight.check([f"sweeps={name}", *experiment], CONF)
    if name in JOBS:
        assert len(jobs) == JOBS[name] == len({job.hash for job in jobs})
    held_out = {job.config["benchmark"]["validation_fraction"] for job in jobs}
    assert held_out == ({0.0} if name == "seeds" else {0.1})  # searches leave the test data alone


@pytest.mark.ci
def test_lists_are_complete():
    assert set(JOBS) | {"optuna_ewc"} <= set(SWEEPS)


@pytest.mark.ci
def test_a_search_over_a_key_that_the_algorithm_lacks_is_refused(elsewhere, capsys):
    assert preflight.main(["sweeps=ewc_lambda", "algo=si"], CONF) == preflight.BAD_INPUT
    assert "algo.ewc_lambda=0: no such key" in capsys.readouterr().err

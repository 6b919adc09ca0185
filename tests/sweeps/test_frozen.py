"""A job's frozen file is the job, without secrets."""

from __future__ import annotations

import pytest

from hydra_plugins.seqrun._frozen import FILE, freeze, thaw
from seqrun.checks import ConfigError
from seqrun.config.secrets import SECRETS
from seqrun.sweeps.summary import SweepJob


def job(directory, **logger) -> SweepJob:
    return SweepJob(
        number=3,
        name="seed=1",
        overrides=("seed=1", "optimizer.lr=1e-05"),
        config={"seed": [1, 2], "optimizer": {"lr": 1e-5}, "logger": {"wandb": logger}},
        directory=directory,
        environment={"A": "1"},
    )


def test_a_job_is_read_back_as_it_was(tmp_path):
    frozen = job(tmp_path, entity=None)
    freeze(frozen, SECRETS)
    assert thaw(tmp_path) == frozen


def test_a_secret_stays_in_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "k3y-of-mine")
    frozen = job(tmp_path, api_key="k3y-of-mine")
    freeze(frozen, SECRETS)
    assert "k3y-of-mine" not in (tmp_path / FILE).read_text()
    assert thaw(tmp_path) == frozen
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY"):
        thaw(tmp_path)
    with pytest.raises(ConfigError, match="logger.wandb.api_key: must come from a variable"):
        freeze(frozen, SECRETS)

"""A job's serialized file has the whole job except its secrets."""

from __future__ import annotations

import pytest

from hydra_plugins.seqrun._serialized import FILE, load_job, serialize
from seqrun.checks import ConfigError
from seqrun.config.experiment import Experiment
from seqrun.config.secrets import SECRETS
from seqrun.sweeps.summary import SweepJob


def job(directory, **logger) -> SweepJob:
    return SweepJob(
        number=3,
        name="seed=1",
        overrides=("seed=1", "optimizer.lr=1e-05"),
        experiment=Experiment.of(
            {"seed": [1, 2], "optimizer": {"lr": 1e-5}, "logger": {"wandb": logger}}
        ),
        directory=directory,
        environment={"A": "1"},
    )


def test_a_job_is_read_back_unchanged(tmp_path):
    written = job(tmp_path, entity=None)
    serialize(written, SECRETS)
    assert load_job(tmp_path) == written


def test_a_secret_stays_in_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "k3y-of-mine")
    written = job(tmp_path, api_key="k3y-of-mine")
    serialize(written, SECRETS)
    assert "k3y-of-mine" not in (tmp_path / FILE).read_text(encoding="utf-8")
    assert load_job(tmp_path) == written
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY"):
        load_job(tmp_path)
    with pytest.raises(ConfigError, match="logger.wandb.api_key: must come from a variable"):
        serialize(written, SECRETS)

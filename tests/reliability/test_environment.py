"""Configurations can only read certain environment variables."""

from __future__ import annotations

import pytest

from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.config.secrets import read_variable


def test_what_may_be_read(monkeypatch: pytest.MonkeyPatch):
    """Allowed by pattern; an absent variable has its default, text or null."""
    monkeypatch.setenv("SEQRUN_NOTE", "x")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert read_variable("SEQRUN_NOTE", "y") == "x"
    assert read_variable("SLURM_JOB_ID", 3) == "3"
    assert read_variable("SLURM_JOB_ID", None) is None
    with pytest.raises(ConfigError, match="oc.env:SLURM_JOB_ID: is not set"):
        read_variable("SLURM_JOB_ID")


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "PATH", "AWS_SECRET", "", "*", "XSEQRUN_A"])
def test_what_may_not(name: str, monkeypatch: pytest.MonkeyPatch):
    """Refused whether the variable is set or not, with a default or without."""
    if name:
        monkeypatch.setenv(name, "hidden")
    for given in ((), ("default",)):
        with pytest.raises(ConfigError, match="must be one of SEQRUN_") as caught:
            read_variable(name, *given)
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data_dir=x${oc.env:WANDB_API_KEY}", "data_dir"),
        ("logger.local.directory=${oc.env:WANDB_API_KEY,a}", "logger.local.directory"),
        ("hydra.run.dir=runs/${oc.env:WANDB_API_KEY}", "hydra.run.dir"),
    ],
)
def test_a_command_names_the_key(
    override: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The error is one line and does not show the value."""
    monkeypatch.setenv("WANDB_API_KEY", "hidden")
    assert preflight.main([override], CONF) == preflight.BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith(f"error: {key}: ") and message.count("\n") == 1
    assert "oc.env:WANDB_API_KEY: must be one of SEQRUN_*, " in message
    assert "hidden" not in message

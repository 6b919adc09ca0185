"""Configurations read environment variables; secrets among them show nowhere."""

from __future__ import annotations

import pytest

from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.config.secrets import read_variable, without_secrets


def test_what_may_be_read(monkeypatch: pytest.MonkeyPatch):
    """Any variable; an absent one has its default, text or null."""
    monkeypatch.setenv("MY_NOTE", "x")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert read_variable("MY_NOTE", "y") == "x"
    assert read_variable("SLURM_JOB_ID", 3) == "3"
    assert read_variable("SLURM_JOB_ID", None) is None
    with pytest.raises(ConfigError, match="oc.env:SLURM_JOB_ID: is not set"):
        read_variable("SLURM_JOB_ID")


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "db_password", "SEQRUN_KEY"]
)
def test_a_secret_is_masked_under_any_key(name: str, monkeypatch: pytest.MonkeyPatch):
    """Within other text too; what is no secret stays."""
    monkeypatch.setenv(name, "T0PS3CRET")
    monkeypatch.setenv("MY_NOTE", "a note")
    monkeypatch.setenv("KEY", "1")
    held, note = read_variable(name), read_variable("MY_NOTE")
    data = {"notes": held, "at": [f"https://me:{held}@host"], "tags": [note, "1"]}
    assert without_secrets(data) == {
        "notes": "***",
        "at": ["https://me:***@host"],
        "tags": ["a note", "1"],
    }


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("backbone.width=${oc.env:WANDB_API_KEY}", "backbone.width"),
        ("device=x${oc.env:WANDB_API_KEY}", "device"),
        ("hydra.run.dir=runs/${oc.env:WANDB_API_KEY}", "hydra.run.dir"),
    ],
)
def test_a_message_names_the_key(
    override: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The error is one line and does not show the value."""
    monkeypatch.setenv("WANDB_API_KEY", "hidden")
    assert preflight.main([override], CONF) == preflight.BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith(f"error: {key}") and message.count("\n") == 1
    assert "hidden" not in message

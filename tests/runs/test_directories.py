"""Run directories: which may be moved aside, and which are in use by another process."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability.small_runs import config_of

from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.records.locks import LOCK_FILE, locked
from seqrun.runs import directory as run_directory
from seqrun.runs import runner

NEVER = ["resume=never"]


def refused(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """Return the only message of a command that ends before anything starts."""
    assert preflight.main(argv, CONF) == preflight.BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


@pytest.fixture(scope="module")
def config() -> dict:
    """Return an experiment as plain data."""
    return config_of("algo=naive")


@pytest.mark.ci
@pytest.mark.parametrize(
    "content",
    [
        ["figures/"],
        ["results.json"],
        ["checkpoints/", "config.yaml"],
        ["results.json", "config.yaml", "seeds/"],
        ["tensorboard/events"],
        ["wandb/"],
        ["comet/"],
        ["timing.jsonl"],
        ["stability_gap.json"],
        ["metrics.jsonl"],
    ],
)
def test_files_of_other_programs_are_neither_moved_nor_used(
    content: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A project may have files of the same names."""
    project = tmp_path / "project"
    project.mkdir()
    for name in content:
        path = project / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("a: 1", encoding="utf-8")
    for never in ([], NEVER):
        if content[0] == "results.json" and not never:
            continue  # a record that cannot be read has a message of its own
        message = refused([f"hydra.run.dir={project}", *never], capsys)
        assert f"hydra.run.dir={project}: has " in message and "no record of a run" in message
        assert ("resume=never to move" in message) is False
    with pytest.raises(ConfigError):
        run_directory.set_aside(project)
    assert [p.name for p in tmp_path.iterdir()] == ["project"]
    assert not (project / ".hydra").exists()


@pytest.mark.ci
def test_the_working_directory_is_not_moved(
    config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Not even if it is a run directory."""
    runner.run_experiment(config, tmp_path / "project")
    below = tmp_path / "project" / "a"
    below.mkdir()
    for here, directory in ((tmp_path / "project", "."), (below, str(tmp_path / "project"))):
        monkeypatch.chdir(here)
        message = refused([f"hydra.run.dir={directory}", *NEVER], capsys)
        assert "must not be the current directory or a parent of it" in message
        with pytest.raises(ConfigError, match="must not be the current"):
            runner.run_experiment({**config, "resume": "never"}, Path(directory))
    assert [p.name for p in tmp_path.iterdir()] == ["project"]


@pytest.mark.ci
@pytest.mark.parametrize("lost", ["results.json", LOCK_FILE])
def test_a_damaged_run_directory_is_still_recognised(config: dict, lost: str, tmp_path: Path):
    """By its checkpoints or its record, and its config.yaml; all of it is moved."""
    run = tmp_path / "run"
    runner.run_experiment(config, run)
    (run / lost).unlink()
    (run / "tensorboard").mkdir()
    if lost == "results.json":
        with pytest.raises(ConfigError, match="no record of a run: .* or resume=never to move"):
            runner.run_experiment(config, run)
    run_directory.set_aside(run)
    assert not run.exists() and (tmp_path / "run.1" / "tensorboard").is_dir()


@pytest.mark.ci
def test_a_run_with_an_unreadable_record_can_be_moved(config: dict, tmp_path: Path):
    """As the message about the record says."""
    run = tmp_path / "run"
    runner.run_experiment(config, run)
    (run / "results.json").write_text("{", encoding="utf-8")
    run_directory.set_aside(run)
    assert not run.exists()


@pytest.mark.ci
def test_a_directory_in_use_is_refused_before_hydra_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Hydra's record of the running job stays unchanged, and nothing is made."""
    run = tmp_path / "run"
    with locked(run):
        for argv in ([], NEVER):
            message = refused([f"hydra.run.dir={run}", *argv], capsys)
            assert f"hydra.run.dir={run}: another process is running in it" in message
        assert [p.name for p in run.iterdir()] == [LOCK_FILE]
    assert preflight.main([f"hydra.run.dir={run}"], CONF) == 0


def test_a_directory_in_use_is_refused_by_the_run_itself(config: dict, tmp_path: Path):
    """A job of a multirun reaches it so, or a run that passed the preflight at the same moment."""
    with locked(tmp_path), pytest.raises(ConfigError, match="another process is running in it"):
        runner.run_experiment(config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [LOCK_FILE]

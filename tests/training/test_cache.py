"""Where compiled programs are kept: below the user's cache, or where a variable says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from experiments import build

from seqrun.checks import ConfigError
from seqrun.training.engine import cache
from seqrun.training.engine.cache import VARIABLES, compilation_cache
from seqrun.training.engine.compile import torch as of_torch

every_framework = pytest.mark.parametrize("framework", ["jax", "torch"])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the user's cache be empty, and nothing be said of another."""
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, "")  # remembered, whatever sets it in a test
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@every_framework
def test_a_folder_for_each_kind_of_processor(
    framework: str, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """A program compiled for one need not run on another, which may share the home."""
    found = compilation_cache(framework)
    assert found is not None and found == compilation_cache(framework)
    assert found.startswith(str(home / "seqrun" / f"{framework}-")) and Path(found).is_dir()
    monkeypatch.setattr(cache.platform, "machine", lambda: "another")
    assert compilation_cache(framework) not in (None, found)


@every_framework
def test_where_a_variable_says(
    framework: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is made if need be; where that cannot be, the variable is named."""
    monkeypatch.setenv(VARIABLES[framework], str(tmp_path / "mine" / "programs"))
    assert compilation_cache(framework) == str(tmp_path / "mine" / "programs")
    assert not home.exists()
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(VARIABLES[framework], str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=f"{VARIABLES[framework]}=.*: is no folder"):
        compilation_cache(framework)


@every_framework
@pytest.mark.parametrize("why", ["a file", "read-only", "nobody"])
def test_without_a_home_that_can_be_written(
    framework: str, why: str, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """None are kept, or where the framework itself keeps them."""
    if why == "a file":
        home.write_text("", encoding="utf-8")
    elif why == "read-only":  # which root is not refused
        monkeypatch.setattr(os, "access", lambda *_: False)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "expanduser", lambda path: path.home())
        monkeypatch.setattr(Path, "home", no_home)
    assert compilation_cache(framework) is None
    of_torch.keep_programs()
    assert VARIABLES["torch"] not in os.environ


def no_home(*_: object) -> Path:
    """Stand for Path.home of a user without an entry."""
    raise RuntimeError("Could not determine home directory.")


def test_torch_uses_the_folder(home: Path):
    """By its own variable, which the processes that compile read as well."""
    of_torch.keep_programs()
    assert os.environ[VARIABLES["torch"]] == compilation_cache("torch")


def test_jax_uses_the_folder(home: Path):
    """When an engine starts."""
    import jax

    before = jax.config.jax_compilation_cache_dir
    try:
        algorithm = build("naive", "jax")
        algorithm.benchmark.prepare(algorithm.random)
        algorithm.engine.start()
        algorithm.engine.stop()
        assert jax.config.jax_compilation_cache_dir == compilation_cache("jax")
        assert str(home) in str(compilation_cache("jax"))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)

"""Compiling: what takes long is announced, and no two processes compile one program at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from seqrun.training.engine import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "PATIENCE", 0.05)
    return tmp_path


def test_what_takes_long_is_announced(capfd: pytest.CaptureFixture[str]):
    with cache.compiling("jax", "the steps", "a"):
        pass
    time.sleep(0.1)
    assert capfd.readouterr().err == ""
    with cache.compiling("jax", "the steps", "a"):
        time.sleep(0.2)
    err = capfd.readouterr().err
    assert err.startswith("compiling the steps: ") and err.count("\n") == 1


def test_one_program_is_compiled_once_at_a_time():
    """The locks are the kernel's, so that threads stand for processes here."""
    inside: list[str] = []
    most: dict[str, int] = {"same": 0, "other": 0}

    def work(name: str, key: str) -> None:
        with cache.compiling("jax", "the steps", key):
            inside.append(name)
            time.sleep(0.1)
            most[name] = max(most[name], inside.count(name))
            inside.remove(name)

    threads = [threading.Thread(target=work, args=("same", "a")) for _ in range(2)]
    threads += [threading.Thread(target=work, args=("other", key)) for key in "bc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == {"same": 1, "other": 2}

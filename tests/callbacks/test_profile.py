"""ProfileCallback: the trace can be read, and covers the chunks asked for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import Trace, build, every_backend, shared_run
from vectorized.members import train

from seqrun.callbacks import ProfileCallback
from seqrun.checks import ConfigError
from seqrun.training.callback import Run

SHORT = {"training": {"chunk_steps": 4}}


class Traced(ProfileCallback):
    """A ProfileCallback with its own directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    def on_before_fit(self, run: Run) -> None:
        super().on_before_fit(run)
        run.algorithm.run_dir = self.directory


def traced(backend: str, directory: Path, **options: int) -> Any:
    algorithm = build("naive", backend, callbacks=[ProfileCallback(**options)], **SHORT)
    algorithm.run_dir = directory
    return algorithm.fit()


def events(directory: Path) -> list[dict[str, Any]]:
    """Return the trace's events, from either backend's file."""
    (path,) = [
        *directory.glob("profile/trace.json"),
        *directory.glob("profile/plugins/profile/*/perfetto_trace.json.gz"),
    ]
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(content)["traceEvents"]


@pytest.mark.ci
@every_backend
def test_a_trace_of_one_chunk(backend: str, tmp_path: Path):
    """Its events have names and durations, and it does not change the run's numbers."""
    record = traced(backend, tmp_path)
    found = events(tmp_path)
    names = {event.get("name", "") for event in found if event.get("dur", 0) > 0}
    wanted = "aten::addmm" if backend == "torch" else "chunk"
    assert any(wanted in name for name in names), sorted(names)[:50]
    plain = shared_run("naive", backend, **SHORT)
    assert (record.accuracy_matrix == plain.matrix)[~np.isnan(plain.matrix)].all()


def test_more_chunks_are_a_longer_trace(tmp_path: Path):
    """A trace of one chunk has the losses of 4 steps, one of three chunks those of 4 + 4 + 1."""
    counts = []
    for chunks in (1, 3):
        traced("torch", tmp_path / str(chunks), num_chunks=chunks, first_chunk=1)
        names = [event.get("name") for event in events(tmp_path / str(chunks))]
        counts.append(names.count("aten::cross_entropy_loss"))
    assert counts == [4, 9]  # chunks have 4, 4 and 1 steps


@pytest.mark.ci
def test_a_run_that_ends_before_its_last_chunk_to_trace(tmp_path: Path):
    """It writes a trace of the chunks so far, and later runs can be traced."""
    for place in ("first", "second"):
        traced("torch", tmp_path / place, first_chunk=2, num_chunks=1000)
        assert events(tmp_path / place)


def test_a_run_that_is_too_short_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It warns and writes no trace."""
    traced("torch", tmp_path, first_chunk=1000)
    assert "first_chunk=1000: nothing was traced" in capsys.readouterr().err
    assert not (tmp_path / "profile").exists()


@pytest.mark.ci
def test_one_trace_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Only one of several runs in lockstep is traced; afterwards another can be."""
    traces = [Traced(tmp_path / str(seed)) for seed in (0, 1)]
    specs = [{"seed": n, "callbacks": [trace], **SHORT} for n, trace in enumerate(traces)]
    assert all(isinstance(found, Trace) for found in train("naive", specs))
    written = [trace.directory for trace in traces if (trace.directory / "profile").exists()]
    assert len(written) == 1 and events(written[0])
    assert (
        capsys.readouterr().err.count(
            "callbacks.profile: another run of this process is being traced"
        )
        == 1
    )
    traced("jax", tmp_path / "after")
    assert events(tmp_path / "after")


@pytest.mark.parametrize("option", ["first_chunk", "num_chunks"])
def test_refuses(option: str):
    """Values out of range are refused."""
    with pytest.raises(ConfigError, match=f"{option}=0: must be an integer >= 1"):
        ProfileCallback(**{option: 0})

"""The memory estimate: values computed by hand, and which runs it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from experiments import ALGORITHMS, CONF, build, every_backend

from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.training import limits as footprint
from seqrun.training.limits import (
    Need,
    available_bytes,
    check_size,
    needs_of,
    refuse_what_cannot_fit,
)
from seqrun.training.trainer import Trainer


def sizes(algorithm: Any) -> dict[str, int]:
    """Set up and return the size of each part."""
    Trainer(algorithm).setup()
    return {part.name: part.num_bytes for part in needs_of(algorithm)}


@every_backend
def test_by_hand(backend: str):
    """3 tasks of 85 images of 8 x 8, batches of 10, replay batches of 10, 2 layers of 16."""
    found = sizes(build("er", backend, memory_size=50, training={"chunk_steps": 4}))
    test = sum(len(build_test_labels(task)) for task in (1, 2, 3))
    weights = 4 * (64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10)
    assert found == {
        "network and states": 2 * weights,
        "data": 2 * (64 + 8) * (85 + test),
        "replay memory": 2 * (64 + 8) * 50,
        "plan of an epoch": 2 * 4 * 9 * 20,
        "inputs of a chunk": 4 * 20 * 64 * (4 if backend == "torch" else 1),
    }


def build_test_labels(task: int) -> np.ndarray:
    """Return the labels of a task's test data."""
    algorithm = build("naive", "torch")
    algorithm.benchmark.prepare(algorithm.random)
    return algorithm.benchmark.task_data(task, "test").y


@every_backend
def test_states_are_counted(backend: str):
    """EWC has an anchor, its offset and an importance, Adam has two moments."""
    plain = sizes(build("naive", backend))["network and states"]
    assert sizes(build("ewc", backend))["network and states"] == 4 * plain
    with_adam = sizes(build("ewc", backend, optimizer="adam"))["network and states"]
    assert 6 * plain <= with_adam <= 6 * plain + 64


@pytest.mark.parametrize(
    ("algo", "options", "key"),
    [
        ("er", {"memory_size": 10**9}, "algo.memory_size=1000000000"),
        ("mcsgd", {"per_task_memory_samples": 10**9}, "algo.per_task_memory_samples=1000000000"),
        ("naive", {"backbone": {"width": 10**6}}, "backbone.width=1000000"),
    ],
)
@every_backend
def test_what_cannot_fit(algo: str, backend: str, options: dict, key: str):
    """The message names the key, the memory needed and the memory available."""
    with pytest.raises(ConfigError, match=rf"{key}: must need less memory: .* GiB are available"):
        build(algo, backend, **options).fit()


BY_DEFAULT = ("ewc", "icarl", "independent", "kcl")


@pytest.mark.parametrize(
    "algo", [pytest.param(a, marks=[] if a in BY_DEFAULT else pytest.mark.full) for a in ALGORITHMS]
)
@every_backend
def test_shapes_alone_give_the_same_size(algo: str, backend: str):
    """Weights, optimizer and states have the same size before and after they are created."""
    counted = build(algo, backend, optimizer="adam").engine.carried_bytes(states=True)
    algorithm = build(algo, backend, optimizer="adam")
    Trainer(algorithm).setup()
    arrays = algorithm.export_arrays()
    there = sum(a.nbytes for n, a in arrays.items() if not n.startswith("memory/"))
    assert counted == there


@every_backend
def test_states_are_refused_before_data(backend: str, monkeypatch: pytest.MonkeyPatch):
    """EWC needs three arrays where only the network would fit; nothing is prepared."""
    weights = build("naive", backend).engine.carried_bytes(states=False)
    monkeypatch.setattr(footprint, "available_bytes", lambda: 5 * weights)
    check_size(build("naive", backend))
    with pytest.raises(ConfigError, match="backbone.width=16: must need less memory"):
        check_size(build("ewc", backend))


@pytest.mark.parametrize("width", [10**8, 10**30])
@every_backend
def test_a_command_says_it_before_anything_else(
    backend: str, width: int, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The exit status is 2, the message names the key, and no directory is created."""
    argv = [f"backbone.width={width}", f"backend={backend}", f"hydra.run.dir={tmp_path}/run"]
    assert preflight.main(argv, CONF) == preflight.BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith(f"error: backbone.width={width}: ") and message.count("\n") == 1
    assert width > 10**9 or "the run needs about" in message
    assert not list(tmp_path.iterdir())


def test_message():
    """Parts are sorted by size; those below one percent are left out."""
    parts = [Need("data", "a=1", 2**30), Need("plan", "b=2", 2**31), Need("dust", "c=3", 2**20)]
    refuse_what_cannot_fit(parts, 2**32)
    with pytest.raises(ConfigError) as caught:
        refuse_what_cannot_fit(parts, 2**31)
    assert str(caught.value) == (
        "b=2: must need less memory: the run needs about 3.0 GiB, 2.0 GiB are available; "
        "plan 2.0 GiB (b=2), data 1.0 GiB (a=1)"
    )


@pytest.mark.parametrize("version", [1, 2])
def test_limit_of_a_container(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The smallest of the machine's and the cgroups' limits; the file cache counts as free."""
    own = tmp_path / "cgroup"
    top = tmp_path / "fs" / ("memory" if version == 1 else "")
    (top / "jobs" / "job_1").mkdir(parents=True)
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if version == 1
        else ("memory.max", "memory.current")
    )
    cache = "total_inactive_file" if version == 1 else "inactive_file"
    for folder, most in ((top / "jobs", 5000), (top / "jobs" / "job_1", "max")):
        (folder / limit).write_text(f"{most}\n", encoding="utf-8")
        (folder / used).write_text("3000\n", encoding="utf-8")
        (folder / "memory.stat").write_text(f"anon 2000\n{cache} 700\n", encoding="utf-8")
    own.write_text(
        "3:cpu:/x\n4:memory:/jobs/job_1\n" if version == 1 else "0::/jobs/job_1\n", encoding="utf-8"
    )
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50 * 1024))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=5 * 1024))
    monkeypatch.setattr(footprint, "OWN_CGROUP", own)
    monkeypatch.setattr(footprint, "CGROUPS", tmp_path / "fs")
    assert available_bytes() == 2700
    (top / "jobs" / limit).write_text("max\n", encoding="utf-8")
    assert available_bytes() == 55 * 1024
    monkeypatch.setattr(footprint, "OWN_CGROUP", tmp_path / "missing")
    assert available_bytes() == 55 * 1024

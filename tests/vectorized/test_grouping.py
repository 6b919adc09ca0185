"""Which jobs may share programs: those that differ only in seeds and declared numbers."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from experiments import ALGORITHMS, algorithm_class
from reliability.small_runs import config_of

from hydra_plugins.seqrun.vectorized import VectorizedLauncher
from seqrun.algorithms.ewc.jax import EWC
from seqrun.callbacks import InterruptionCallback, MetricCallback, TqdmCallback
from seqrun.checks import ConfigError
from seqrun.config.build import build, check
from seqrun.config.experiment import Experiment
from seqrun.loggers import ConsoleLogger, LocalLogger
from seqrun.records.results import Results
from seqrun.runs import vmapped
from seqrun.sweeps import jobs
from seqrun.sweeps.grouping import group, structure_of, vectorizable_keys
from seqrun.sweeps.summary import Outcome, SweepJob
from seqrun.training import limits as footprint
from seqrun.training.engine.vmap import BaseVmapGroup

PAGE = Path(__file__).parents[2] / "docs" / "vectorized.md"
EWC_ON_JAX = ("backend=jax", "algo=ewc")


def job(number: int, *overrides: str, environment: Mapping[str, str] | None = None) -> SweepJob:
    """Return a job: options of groups are composed, keys with a dot are put in place."""
    config = copy.deepcopy(config_of(*(o for o in overrides if "." not in o.split("=")[0])))
    for key, value in (o.split("=") for o in overrides if "." in o.split("=")[0]):
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        assert last in node
        node[last] = yaml.safe_load(value)
    return SweepJob(
        number=number,
        name=" ".join(overrides),
        overrides=overrides,
        experiment=Experiment.of(config),
        directory=Path(f"/nowhere/{number}"),
        environment=environment or {},
    )


def numbers(jobs: list[SweepJob]) -> list[int]:
    return [found.number for found in jobs]


@pytest.mark.ci
def test_a_grid_is_one_group():
    values = [(s, lr, c) for s in (0, 1) for lr in (0.01, 0.1) for c in (1, 30.0)]
    grid = [
        job(n, *EWC_ON_JAX, f"seed={s}", f"optimizer.lr={lr}", f"algo.ewc_lambda={c}")
        for n, (s, lr, c) in enumerate(values)
    ]
    groups, alone = group(grid)
    assert [numbers(members) for members in groups] == [list(range(8))] and not alone


@pytest.mark.ci
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("algo.fisher=exact",), "algo.fisher"),
        (("algo.fisher_samples=20",), "algo.fisher_samples"),
        (("algo.ewc_lambda=0",), "algo.ewc_lambda"),
        (("optimizer.momentum=0.9",), "optimizer.momentum"),
        (("optimizer.weight_decay=0.1",), "optimizer.weight_decay"),
        (("training.grad_clip=1.0",), "training.grad_clip"),
        (("backbone.width=16",), "backbone.width"),
        (("training.epochs_per_task=1",), "training.epochs_per_task"),
        (("benchmark.batch_size=20",), "benchmark.batch_size"),
        (("optimizer=adam",), "optimizer._target_"),
        (("algo=si",), "algo._target_"),
        (("callbacks.checkpoint.keep=3",), "callbacks.checkpoint.keep"),
        (("num_threads=2",), "num_threads"),
        (("device=auto",), "device"),
        (("data_dir=elsewhere",), "data_dir"),
    ],
)
def test_another_structure_is_another_group(changed: tuple[str, ...], named: str):
    """It runs alone, and the reason names the keys."""
    jobs = [job(0, *EWC_ON_JAX), job(1, *EWC_ON_JAX, "seed=1"), job(2, *EWC_ON_JAX, *changed)]
    groups, alone = group(jobs)
    assert [numbers(members) for members in groups] == [[0, 1]]
    assert numbers([found for found, _ in alone]) == [2]
    assert alone[0][1].startswith("no other job has its") and named in alone[0][1]
    again = job(3, *EWC_ON_JAX, *changed, "seed=1", "optimizer.lr=0.3")
    groups, alone = group([*jobs, again])
    assert [numbers(members) for members in groups] == [[0, 1], [2, 3]] and not alone


@pytest.mark.ci
def test_what_runs_alone_and_why():
    jobs = [job(0, "backend=torch"), job(1, "backend=torch", "seed=1")]
    jobs += [job(2, "backend=jax", "seed=[0,1]"), job(3, "backend=jax")]
    jobs += [job(4, "backend=jax", "seed=1", "logger.local.figures=true", "streams.data=3")]
    groups, alone = group(jobs)
    assert [numbers(members) for members in groups] == [[3, 4]]
    reasons = {found.number: reason for found, reason in alone}
    assert "backend=torch: only JAX" in reasons[0] and "several seeds" in reasons[2]
    own = "seeds_strategy=processes"
    jobs = [job(n, "backend=jax", f"seed={n}", *([own] if n == 2 else [])) for n in range(3)]
    groups, alone = group(jobs)
    assert [numbers(members) for members in groups] == [[0, 1]] and own in alone[0][1]
    jobs = [job(0, "backend=jax", environment={"A": "1"}), job(1, "backend=jax", "seed=1")]
    groups, alone = group(jobs)
    assert not groups and "hydra.job.env_set" in alone[0][1]


@pytest.mark.parametrize(
    "key", ["algo.fisher_samples", "benchmark.batch_size", "training.chunk_steps"]
)
def test_numbers_that_shapes_follow_from(key: str):
    """Numbers that determine shapes are never arguments of a program."""
    groups, _ = group([job(n, *EWC_ON_JAX, f"{key}={20 + n}") for n in (0, 1)])
    assert not groups


def test_the_page_lists_what_is_declared():
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.M))
    for algo in ALGORITHMS:
        row = next(text for names, text in rows.items() if f"`{algo}`" in names)
        told = row.split("; ")[-1 if algo == "derpp" else 0]
        names = "" if told.startswith("none") else told
        declared = algorithm_class(algo, "jax").vectorizable
        assert set(re.findall("`(.+?)`", names)) == set(declared), algo


def test_momentum_of_some_size():
    """0.5 and 0.9 are one structure, 0 and 0.9 are two."""
    sizes = (0, 0.5, 0.9)
    found = [structure_of(job(0, *EWC_ON_JAX, f"optimizer.momentum={m}").config) for m in sizes]
    assert found[1] == found[2] != found[0]


def test_a_class_of_a_users_speaks_for_itself(monkeypatch: pytest.MonkeyPatch):
    """While a program is traced, it may read values that its base class passes as arguments."""
    module = ModuleType("mine_alone")
    module.__file__ = "mine_alone.py"

    class Mine(EWC):
        pass

    Mine.__module__ = "mine_alone"
    module.Mine = Mine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine_alone", module)
    config: Any = dict(config_of(*EWC_ON_JAX)) | {"allow_targets": ["mine_alone"]}
    config["algo"] = config["algo"] | {"_target_": "mine_alone.Mine"}
    assert not [key for key in vectorizable_keys(config) if key.startswith("algo.")]
    Mine.vectorizable = ("ewc_lambda",)
    assert "algo.ewc_lambda" in vectorizable_keys(config)


# ---- the keys of one run


def test_vmap_needs_jax():
    with pytest.raises(ConfigError, match="seeds_strategy=vmap: must be auto, processes or seq"):
        check(dict(config_of("backend=torch")) | {"seeds_strategy": "vmap"})
    check(dict(config_of("backend=jax")) | {"seeds_strategy": "vmap"})


@pytest.mark.ci
def test_groups_fit_memory(monkeypatch: pytest.MonkeyPatch):
    """Their size depends on the estimate for one run, never on the memory that is free now."""
    algorithm = build(config_of("backend=jax"), 0)
    assert vmapped.runs_at_once(algorithm) == vmapped.MAX_RUNS
    needed = sum(part.num_bytes for part in footprint.needs_of(algorithm))
    for room, runs in ((10.0, 5), (7.9, 3), (0.1, 1)):
        monkeypatch.setattr(vmapped, "total_bytes", lambda room=room: int(room * needed))
        assert vmapped.runs_at_once(algorithm) == runs


def test_groups_fit_the_device_s_own_memory(monkeypatch: pytest.MonkeyPatch):
    """The smaller of the two memories counts."""
    algorithm = build(config_of("backend=jax"), 0)
    vmapped.runs_at_once(algorithm)
    needed = sum(part.num_bytes for part in footprint.needs_of(algorithm))
    monkeypatch.setattr(vmapped, "total_bytes", lambda: 100 * needed)
    for room, runs in ((6.1, 3), (None, 50), (1000, 50)):
        own = None if room is None else int(room * needed)
        monkeypatch.setattr(algorithm.engine_type, "device_bytes", own)
        assert vmapped.runs_at_once(algorithm) == runs


def test_a_member_prints_nothing():
    """Output of several runs would be mixed; other callbacks and loggers stay."""
    metrics, files = MetricCallback(), LocalLogger()
    algorithm: Any = SimpleNamespace(
        engine=SimpleNamespace(execution={}),
        callbacks=[TqdmCallback(), metrics],
        loggers=[ConsoleLogger(), files],
    )
    member: Any = object()
    vmapped._join(algorithm, member)
    assert algorithm.engine.participant is member
    assert algorithm.engine.execution == {"strategy": "vmap"}
    assert algorithm.callbacks == [metrics] and algorithm.loggers == [files]


def test_places_of_runs_in_several_groups(monkeypatch: pytest.MonkeyPatch):
    """Five runs, two at a time, one of which fails: each is reported with its own index."""

    class First:
        """Stands for a run whose engine makes groups."""

        engine = SimpleNamespace(new_vmap_group=BaseVmapGroup)

    def work_of(place: int) -> Any:
        def work(join: Any) -> str:
            if place == 3:
                raise ValueError("no")
            return f"run {place}"

        return work

    told: list[tuple[int, Any]] = []
    monkeypatch.setattr(BaseVmapGroup, "answer", lambda self, calls: {})
    first: Any = First()
    works = [work_of(n) for n in range(5)]
    vmapped.run_vmapped(first, 2, works, lambda place, result: told.append((place, result)))
    assert [place for place, _ in told] == [0, 1, 2, 3, 4]
    assert [result for place, result in told if place != 3] == [f"run {n}" for n in (0, 1, 2, 4)]
    assert isinstance(told[3][1], ValueError)


@pytest.mark.ci
def test_what_fails_before_a_group_is_told_of_each_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each job fails as it would alone, so that jobs of other groups continue."""

    def prepare(self: Any, *_: Any) -> None:
        raise OSError("stale file handle")

    told: list[tuple[SweepJob, Outcome]] = []
    monkeypatch.setattr("seqrun.benchmarks.RotatedDigits.prepare", prepare)
    made = [job(n, *EWC_ON_JAX, "benchmark=rotated_digits", f"seed={n}") for n in range(2)]
    both = [dataclasses.replace(one, directory=tmp_path / str(one.number)) for one in made]
    jobs.run_jobs_vmapped(both, InterruptionCallback(), lambda *found: told.append(found))
    assert [one for one, _ in told] == both
    assert "2 jobs run alone: OSError: stale file handle" in capsys.readouterr().err
    for one, outcome in told:
        assert outcome.status == "failed" and "stale file handle" in str(outcome.error)
        assert Results.read(one.directory).status == "failed"


@pytest.mark.ci
def test_a_job_s_variables_are_set_while_it_runs(monkeypatch: pytest.MonkeyPatch):
    """In a group and alone, and not after it."""
    seen: dict[int, str | None] = {}

    def note(job: SweepJob) -> Outcome:
        seen[job.number] = os.environ.get("MINE")
        return Outcome(overrides=(), directory=job.directory, status="completed", value=1.0)

    def run_jobs_vmapped(members: list[SweepJob], interruption: Any, ended: Any) -> None:
        for member in members:
            ended(member, note(member))

    monkeypatch.delenv("MINE", raising=False)
    monkeypatch.setattr(jobs, "has_ended", lambda job: False)
    monkeypatch.setattr(jobs, "run_job", lambda job, interruption: note(job))
    monkeypatch.setattr(jobs, "run_jobs_vmapped", run_jobs_vmapped)
    values = ("one", "one", "two", None)
    grid = [
        job(n, *EWC_ON_JAX, f"seed={n}", environment={"MINE": value} if value else {})
        for n, value in enumerate(values)
    ]
    VectorizedLauncher().run(grid)
    assert [seen[n] for n in range(4)] == ["one", "one", "two", None]
    assert "MINE" not in os.environ


def test_memory_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The total memory, or the limit of a cgroup, no matter how much of it is used."""
    own, top = tmp_path / "own", tmp_path / "fs"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=100 * 1024))
    own.write_text("0::/jobs\n", encoding="utf-8")
    (top / "jobs").mkdir(parents=True)
    for name, value in (("OWN_CGROUP", own), ("CGROUPS", top)):
        monkeypatch.setattr(footprint, name, value)
    assert footprint.total_bytes() == 100 * 1024
    (top / "jobs" / "memory.max").write_text("7000\n", encoding="utf-8")
    assert footprint.total_bytes() == 7000
    (top / "jobs" / "memory.max").write_text("max\n", encoding="utf-8")
    assert footprint.total_bytes() == 100 * 1024

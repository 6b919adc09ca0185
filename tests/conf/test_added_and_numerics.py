"""Later changes of a part: new options stay out of the hash, new versions of numbers enter it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from seqrun.algorithms.base import TrainingOptions
from seqrun.algorithms.naive.torch import Naive
from seqrun.checks import ConfigError, added
from seqrun.config import hash as hashing
from seqrun.config import schema
from seqrun.config.experiment import Experiment
from seqrun.config.hash import config_hash, numerics_of
from seqrun.optimizers.torch import SGD
from seqrun.records.results import RecordError, Results
from seqrun.runs import runner
from seqrun.runs.directory import is_done

PARTS = """\
from dataclasses import dataclass
from typing import Any
from seqrun.algorithms.naive.torch import Naive
from seqrun.backbones.torch import MLP
from seqrun.benchmarks import RotatedDigits
from seqrun.optimizers.torch import SGD
from seqrun.callbacks import BaseCallback
from seqrun.checks import added, changed

@dataclass
class Inner:
    size: int = 1
    colour: Any = added(None)

@dataclass(kw_only=True, eq=False)
class Algo(Naive):
    later: Any = added(None)

@dataclass(kw_only=True, eq=False)
class Benchmark(RotatedDigits):
    later: Any = added(None)

@dataclass(kw_only=True, eq=False)
class Backbone(MLP):
    later: Any = added(None)

@dataclass(kw_only=True, eq=False)
class Optimizer(SGD):
    later: Any = added(None)

@dataclass(kw_only=True, eq=False)
class Moved(Naive):
    strength: float = changed(2.0)
    momentum: Any = added(0.8, before=None)

@dataclass(kw_only=True, eq=False)
class Mine(BaseCallback):
    old: float = 1.0
    inner: Any = None
    factor: float = added(1.0)
    sizes: list = added(default_factory=lambda: [1, 2.5])
"""
MINE = ("allow_targets=[parts_of_mine]", "+callbacks.mine._target_=parts_of_mine.Mine")
SHORT = ("algo=naive", "benchmark.num_tasks=2", "benchmark.samples_per_task=40", "callbacks=[]")
QUIET = ("logger=[local]", "logger.local.figures=false")


@pytest.fixture
def config_of(jobs_of, tmp_path, monkeypatch):
    """Return the experiment of a command, which may use a user's package, as plain data."""
    (tmp_path / "parts_of_mine.py").write_text(PARTS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *overrides: jobs_of(*SHORT, *QUIET, *overrides)[0].config


@pytest.fixture
def config(config_of) -> dict[str, Any]:
    return config_of()


SAME = [
    ("+callbacks.mine.factor=1.0",),
    ("+callbacks.mine.factor=1",),
    ("+callbacks.mine.sizes=[1.0,2.5]", "+callbacks.mine.factor=1.0"),
]
OTHER = [
    ("+callbacks.mine.factor=2",),
    ("+callbacks.mine.sizes=[1]",),
    ("+callbacks.mine.old=1.0",),  # an old option, which has always been hashed if set
    ("+callbacks.mine.factor=null",),
]


@pytest.mark.ci
@pytest.mark.parametrize("overrides", SAME)
def test_a_new_option_at_its_default_is_not_hashed(config_of, overrides):
    assert config_hash(config_of(*MINE, *overrides)) == config_hash(config_of(*MINE))


@pytest.mark.ci
@pytest.mark.parametrize("overrides", OTHER)
def test_a_new_option_at_another_value_is_hashed(config_of, overrides):
    assert config_hash(config_of(*MINE, *overrides)) != config_hash(config_of(*MINE))


@pytest.mark.ci
@pytest.mark.parametrize("part", ["algo", "benchmark", "backbone", "optimizer"])
def test_a_new_option_of_every_part(config_of, part):
    own = ("allow_targets=[parts_of_mine]", f"{part}._target_=parts_of_mine.{part.capitalize()}")
    before = config_hash(config_of(*own))
    assert config_hash(config_of(*own, f"+{part}.later=null")) == before
    assert config_hash(config_of(*own, f"+{part}.later=1")) != before


@pytest.mark.ci
def test_a_new_option_within_a_list_of_parts(config_of):
    one = "{_target_: parts_of_mine.Inner, size: 2%s}"
    hashes = {
        later: config_hash(config_of(*MINE, f"+callbacks.mine.inner=[{one % later}]"))
        for later in ("", ", colour: null", ", colour: red")
    }
    assert hashes[""] == hashes[", colour: null"] != hashes[", colour: red"]


@pytest.mark.ci
def test_a_new_option_of_a_nested_part(config_of):
    inner = (*MINE, "+callbacks.mine.inner._target_=parts_of_mine.Inner")
    colour = "+callbacks.mine.inner.colour"
    before = config_hash(config_of(*inner))
    assert config_hash(config_of(*inner, f"{colour}=null")) == before
    assert config_hash(config_of(*inner, f"{colour}=red")) != before
    assert config_hash(config_of(*inner, "+callbacks.mine.inner.size=1")) != before


def test_a_new_option_of_training(config, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Later(TrainingOptions):
        warmup: float = added(0.0)

    monkeypatch.setattr(hashing, "TrainingOptions", Later)
    before = config_hash(config)

    def with_warmup(value: Any) -> str:
        return config_hash({**config, "training": {**config["training"], "warmup": value}})

    assert with_warmup(0) == with_warmup(0.0) == before
    assert with_warmup(0.1) != before


def test_a_new_key_of_the_schema(config, monkeypatch):
    """Experiments written before it existed have its default."""

    @dataclasses.dataclass
    class Later(schema.Schema):
        precision: Any = added("float32")
        limits: Any = added(default_factory=list)

    monkeypatch.setattr(hashing, "Schema", Later)
    monkeypatch.setattr(schema, "Schema", Later)
    before = config_hash(config)
    experiment = Experiment.of(config)
    assert experiment.config == {**config, "precision": "float32", "limits": []}
    assert experiment.hash == before
    schema.check_values(experiment.config)
    assert config_hash({**config, "precision": "bfloat16"}) != before
    assert config_hash({**config, "limits": [1]}) != before


@pytest.mark.ci
def test_a_default_that_changed(config_of):
    """The old command is a new run, whether it names the options or not; old values find the old.

    `strength` was 1, and there was no `momentum`.
    """
    moved = ("allow_targets=[parts_of_mine]", "algo._target_=parts_of_mine.Moved")
    strength, momentum = "+algo.strength=", "+algo.momentum="
    unnamed, old = config_of(*moved), config_of(*moved, f"{strength}1")
    before = config_hash(unnamed | {"algo": unnamed["algo"] | {"momentum": None, "strength": 2}})
    hashes = {
        config_hash(config_of(*moved, *more))
        for more in ((), (f"{strength}2",), (f"{momentum}0.8",), (f"{strength}2", f"{momentum}.8"))
    }
    assert len(hashes) == 1 and before not in hashes
    named = config_of(*moved, f"{strength}1", f"{momentum}null")
    assert hashing.without_added(named)["algo"] == {
        "_target_": "parts_of_mine.Moved",
        "strength": 1,
    }
    assert hashing.differences(named, old) == ["algo.momentum: None -> 0.8"]
    assert hashing.differences({**old, "algo": {"_target_": "parts_of_mine.Moved"}}, unnamed) == [
        "algo.strength: - -> 2.0",
        "algo.momentum: - -> 0.8",
    ]


@pytest.mark.ci
def test_a_new_option_at_its_default_is_no_difference(config_of, elsewhere):
    """The message names only the key that does differ."""
    old = config_of(*MINE)
    runner.run_experiment(old, elsewhere)
    same = config_of(*MINE, "+callbacks.mine.factor=1")
    assert is_done(elsewhere, same)
    other = {**same, "seed": 3}
    with pytest.raises(ConfigError) as refused:
        is_done(elsewhere, other)
    assert "another experiment (seed: 0 -> 3)" in str(refused.value)


# ---- numerics


def of_momentum(options: dict[str, Any]) -> int:
    """Return version 3 for options whose numbers changed, else 1."""
    return 3 if options["momentum"] > 0 else 1


def test_numbers_that_changed_are_hashed(config, monkeypatch):
    before = Experiment.of(config)
    assert before.numerics == {}
    monkeypatch.setattr(Naive, "numerics", 2, raising=False)
    after = Experiment.of(config)
    assert after.numerics == {"algo": 2} and after.hash != before.hash
    monkeypatch.setattr(Naive, "numerics", 3, raising=False)
    assert Experiment.of(config).hash not in (before.hash, after.hash)
    assert config_hash(config, {}) == before.hash and config_hash(config, {"algo": 2}) == after.hash


@pytest.mark.parametrize("part", ["algo", "benchmark", "backbone", "optimizer"])
def test_the_version_of_every_part_is_hashed(config, monkeypatch, part):
    before, node = Experiment.of(config).hash, config[part]["_target_"]
    kind = hashing.find_class(part, node, object, [])
    monkeypatch.setattr(kind, "numerics", 2)
    assert numerics_of(config) == {part: 2}
    assert Experiment.of(dict(config)).hash != before


def test_the_version_of_a_nested_part(config_of, monkeypatch):
    inner = (*MINE, "+callbacks.mine.inner._target_=parts_of_mine.Inner")
    config = config_of(*inner)
    import parts_of_mine

    monkeypatch.setattr(parts_of_mine.Inner, "numerics", 4, raising=False)
    assert numerics_of(config) == {"callbacks.mine.inner": 4}


def test_a_version_of_some_options_only(config, monkeypatch):
    """Options that a configuration leaves out have their defaults."""
    monkeypatch.setattr(SGD, "numerics", staticmethod(of_momentum))
    assert numerics_of(config) == {}
    moving = {**config, "optimizer": {**config["optimizer"], "momentum": 0.9}}
    assert numerics_of(moving) == {"optimizer": 3}
    optimizer = {k: v for k, v in config["optimizer"].items() if k != "momentum"}
    assert numerics_of({**config, "optimizer": optimizer}) == {}


def test_the_precision_of_products(config, monkeypatch):
    """A run on a GPU has other numbers than before there was the key; one on a CPU does not."""
    tf32 = {**config, "training": {**config["training"], "matmul_precision": "tf32"}}
    assert numerics_of(config) == {} and config_hash(tf32) != config_hash(config)
    monkeypatch.setattr(Naive.engine_type, "find_device", staticmethod(lambda device: "cuda"))
    assert numerics_of(config) == {"training": 2}
    assert config_hash(tf32) != config_hash(config) != config_hash(config, {})


@pytest.mark.ci
def test_independent_changed_only_where_its_rate_decayed(config_of):
    """An algorithm's version may depend on the nodes that it is given; others keep their hash."""
    assert numerics_of(config_of("algo=independent")) == {}
    assert numerics_of(config_of("algo=independent", "training.lr_decay=0.5")) == {"algo": 2}
    assert numerics_of(config_of("training.lr_decay=0.5")) == {}


@dataclasses.dataclass(kw_only=True, eq=False)
class WithStatistics(Naive):
    """Numbers that changed with BatchNorm, where a new option does not have its old value."""

    option: str = added("new", before="old")

    @staticmethod
    def numerics(options: dict[str, Any]) -> int:
        """Return 2 for numbers that changed."""
        normalised = options["backbone"].has_batch_statistics
        return 2 if normalised and options["option"] == "new" else 1


def test_a_new_option_whose_default_changes_the_numbers(config, monkeypatch):
    """Its old value finds the old run; its default does so where the numbers did not change."""

    def with_option(value: str, **backbone: Any) -> dict[str, Any]:
        own = {"algo": {**config["algo"], "option": value}}
        return {**config, **own, "backbone": {**config["backbone"], **backbone}}

    monkeypatch.setattr(WithStatistics, "__module__", Naive.__module__)
    plain, normalised = config, {**with_option("old", batch_norm=True), "algo": config["algo"]}
    before = config_hash(plain), config_hash(normalised)  # when there was no option
    monkeypatch.setattr("seqrun.algorithms.naive.torch.Naive", WithStatistics)
    assert config_hash(with_option("old")) == config_hash(with_option("new")) == before[0]
    assert config_hash(with_option("old", batch_norm=True)) == before[1]
    assert numerics_of(with_option("new", batch_norm=True)) == {"algo": 2}
    assert config_hash(normalised) == config_hash(with_option("new", batch_norm=True))
    others = [with_option("new", batch_norm=True), with_option("third")]
    assert len({*before, *map(config_hash, others)}) == 4


def test_the_version_of_a_callback_that_only_observes_is_not_hashed(config_of, monkeypatch):
    from seqrun.callbacks import EarlyStoppingCallback, TqdmCallback

    for kind in (TqdmCallback, EarlyStoppingCallback):
        monkeypatch.setattr(kind, "numerics", 2, raising=False)
    held_out = ("callbacks=[progress,early_stopping]", "benchmark.validation_fraction=0.2")
    assert numerics_of(config_of(*held_out)) == {"callbacks.early_stopping": 2}


@pytest.mark.ci
def test_the_record_has_the_versions_above_1(config, elsewhere, monkeypatch):
    runner.run_experiment(config, elsewhere / "old")
    assert "numerics" not in json.loads(
        (elsewhere / "old" / "results.json").read_text(encoding="utf-8")
    )
    monkeypatch.setattr(Naive, "numerics", 2, raising=False)
    results = runner.run_experiment(config, elsewhere / "new")
    kept = json.loads((elsewhere / "new" / "results.json").read_text(encoding="utf-8"))
    assert kept["numerics"] == {"algo": 2} == Results.read(elsewhere / "new").numerics
    assert kept["config_hash"] == results.config_hash == Experiment.of(config).hash
    assert is_done(elsewhere / "new", config)
    (elsewhere / "new" / "results.json").write_text(
        json.dumps({**kept, "numerics": {"algo": "x"}}), encoding="utf-8"
    )
    with pytest.raises(RecordError, match=r"Expected `int`, got `str` - at `\$.numerics"):
        Results.read(elsewhere / "new")


@pytest.mark.ci
@pytest.mark.parametrize("is_named", [False, True])
def test_a_run_from_before_the_numbers_changed_is_refused(config, elsewhere, monkeypatch, is_named):
    """The message says why; resume=never moves the old run aside."""
    run = elsewhere / "run"
    first = 2 if is_named else 1
    if is_named:
        monkeypatch.setattr(Naive, "numerics", 2, raising=False)
    runner.run_experiment(config, run).finish("interrupted")
    monkeypatch.setattr(Naive, "numerics", 5, raising=False)
    with pytest.raises(ConfigError) as refused:
        runner.run_experiment(config, run)
    assert str(refused.value) == (
        f"hydra.run.dir={run}: holds this experiment as it was before its numbers changed "
        f'(algo: numerics {first} -> 5, see "Numerics" in CHANGELOG.md): choose another '
        "directory, or resume=never to move that one aside"
    )
    other = {**config, "seed": 1}
    with pytest.raises(ConfigError, match="another experiment .seed: 0 -> 1.:"):
        runner.run_experiment(other, run)
    runner.run_experiment({**config, "resume": "never"}, run)
    assert is_done(run, config)


# ---- hashed once


@pytest.mark.ci
def test_a_run_hashes_its_experiment_once(elsewhere: Path, monkeypatch):
    """One command hashes it once for the preflight, Hydra's directory names and the run."""
    import runpy
    import sys

    from seqrun.cli.listing import CONF
    from seqrun.config import experiment

    hashed: list[Any] = []

    def counted(*args: Any) -> str:
        hashed.append(args)
        return config_hash(*args)

    monkeypatch.setattr(experiment, "config_hash", counted)
    command = [str(CONF.parent / "run.py"), *SHORT, "logger=[local]"]
    monkeypatch.setattr("seqrun.cli.run.atexit", Mock())  # or it would set pytest's exit status
    for number in (1, 2):  # a new command hashes again, as the data may have changed
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(command[0], run_name="__main__")
        assert not ended.value.code
        assert len(hashed) == number
    (directory,) = (elsewhere / "runs").iterdir()
    kept = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    assert directory.name == Experiment.of(kept).name

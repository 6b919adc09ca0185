"""What Hydra's users write in a node, and where: as they know it."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqrun.checks import ConfigError
from seqrun.config import build

CODE = '''
from functools import partial
import numpy as np
from omegaconf import DictConfig
from seqrun.backbones.torch import MLP
from seqrun.benchmarks import RotatedDigits
from seqrun.callbacks import BaseCallback
from seqrun.optimizers.torch import SGD


class Takes(BaseCallback):
    def __init__(self, first, *rest, **options):
        self.first, self.rest, self.options = first, rest, options


class Holds(BaseCallback):
    def __init__(self, made=None):
        self.made = made


class Net:
    @classmethod
    def small(cls, factor=1):
        return MLP(width=8 * factor, n_hidden_layers=1)


def optimizer(lr, scale=1.0):
    """Return seqrun's SGD."""
    return SGD(lr=lr * scale)


def digits(**options):
    return RotatedDigits(**options)


def number():
    return 3


def callback(made=None):
    return Holds(made)
'''
MINE = ("algo=naive", "allow_targets=[own_parts]")


@pytest.fixture(autouse=True)
def own_parts(tmp_path: Path, monkeypatch) -> None:
    """Put a package `own_parts` on the path."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "own_parts.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))


@pytest.fixture
def built(jobs_of):
    """Return a function that builds the algorithm of a command line."""
    return lambda *argv: build.build(jobs_of(*MINE, *argv)[0].experiment, 0)


def test_a_class_of_any_arguments(built):
    node = "{_target_: own_parts.Takes, _args_: [1, 2, 3], x: 4, y: [5]}"
    taken = built(f"+callbacks.t={node}").callbacks[-1]
    assert (taken.first, taken.rest, taken.options) == (1, (2, 3), {"x": 4, "y": [5]})
    with pytest.raises(ConfigError, match="callbacks.t.first: must be given"):
        built("+callbacks.t._target_=own_parts.Takes")


def test_a_partial(built):
    inner = "{_target_: own_parts.optimizer, _partial_: true, scale: 2}"
    held = built(f"+callbacks.t={{_target_: own_parts.Holds, made: {inner}}}").callbacks[-1]
    assert held.made(lr=0.5).lr == 1.0
    with pytest.raises(ConfigError, match="must give a BaseCallback, not a"):
        built("+callbacks.t={_target_: own_parts.Takes, _partial_: true}")


@pytest.mark.parametrize(("how", "kind"), [("", "dict"), (", _convert_: none", "DictConfig")])
def test_how_arguments_are_converted(built, how, kind):
    held = built(f"+callbacks.t={{_target_: own_parts.Holds, made: {{a: 1}}{how}}}").callbacks[-1]
    assert type(held.made).__name__ == kind


def test_nodes_that_are_not_made(built):
    inner = "{_target_: own_parts.optimizer, lr: 1}"
    node = f"{{_target_: own_parts.Holds, _recursive_: false, made: {inner}}}"
    assert built(f"+callbacks.t={node}").callbacks[-1].made["lr"] == 1


def test_parts_of_the_frameworks(built):
    inner = "{_target_: torch.nn.Linear, in_features: 2, out_features: 3}"
    held = built(f"+callbacks.t={{_target_: own_parts.Holds, made: {inner}}}").callbacks[-1]
    assert held.made.weight.shape == (3, 2)


def test_functions(built):
    """In the place of a class, except of an algorithm."""
    made = built("+callbacks.t={_target_: own_parts.callback, made: 7}").callbacks[-1]
    assert made.made == 7
    optimizer = ["optimizer._target_=own_parts.optimizer", "~optimizer.momentum"]
    optimizer += ["~optimizer.weight_decay", "~optimizer.nesterov", "optimizer.lr=0.1"]
    assert built(*optimizer, "+optimizer.scale=3").optimizer.lr == pytest.approx(0.3)
    with pytest.raises(ConfigError, match=r"optimizer.*no such key; .* has lr, scale"):
        built(*optimizer, "+optimizer.scal=3")
    with pytest.raises(ConfigError, match="must give a BaseCallback, not a int"):
        built("+callbacks.t._target_=own_parts.number")
    with pytest.raises(ConfigError, match="algo._target_=own_parts.number: must be a class"):
        built("algo._target_=own_parts.number")


def test_a_benchmark_by_a_function(jobs_of):
    (job,) = jobs_of(*MINE, "benchmark._target_=own_parts.digits")
    assert job.directory.name == f"naive-rotated_digits-{job.hash}"


def test_a_class_method(jobs_of, built):
    keys = ("width", "n_hidden_layers", "dropout", "batch_norm", "init", "head", "layer_norm")
    (job,) = jobs_of(*MINE)
    node = [f"~backbone.{key}" for key in job.config["backbone"] if key != "_target_"]
    assert set(keys) & set(job.config["backbone"])
    made = built("backbone._target_=own_parts.Net.small", *node, "+backbone.factor=2").backbone
    assert made.width == 16


@pytest.mark.parametrize("value", ["${hydra:runtime.choices.benchmark}", "${oc.env:MY_PLACE}"])
def test_references_anywhere(jobs_of, monkeypatch, elsewhere, value):
    monkeypatch.setenv("MY_PLACE", "rotated_digits")
    place = "logger.local.directory=${hydra:runtime.cwd}/x"
    run = "hydra.run.dir=runs/${hydra:runtime.choices.algo}"
    (job,) = jobs_of("algo=naive", f"data_dir={value}", place, run)
    assert job.config["data_dir"] == str(elsewhere / "rotated_digits")
    assert job.config["logger"]["local"]["directory"] == f"{elsewhere}/x"
    assert job.directory == elsewhere / "runs" / "naive"
    for each in jobs_of("-m", f"data_dir={value}", "seed=0,1", "hydra.sweep.dir=${hydra:job.name}"):
        assert each.directory.parent.name == "run"


def test_a_primary_configuration_of_ones_own(jobs_of, elsewhere):
    text = "defaults: [config, {override algo: er}, {override /logger: tensorboard}, _self_]\n"
    (elsewhere / "D").mkdir()
    (elsewhere / "D" / "my.yaml").write_text(f"{text}seed: 3\n", encoding="utf-8")
    (job,) = jobs_of("--config-dir", "D", "--config-name", "my")
    assert (job.config["seed"], job.directory.name[:3]) == (3, "er-")
    assert list(job.config["logger"]) == ["console", "local", "tensorboard"]
    (same,) = jobs_of("algo=er", "seed=3")
    assert job.hash == same.hash

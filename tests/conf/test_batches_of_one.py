"""BatchNorm with batches of one sample is refused before the start, for every job and seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from experiments import build
from torch import nn

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.backbones.wrapped.torch import Wrapped
from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.training.limits import check_lengths_beforehand

NORM = ("algo=naive", "backbone.batch_norm=true", "benchmark.num_tasks=2")
SAID = "has one sample, which BatchNorm cannot normalise\n"


def refused(argv, capfd, elsewhere) -> str:
    """Return the only message of a command that ends without making anything."""
    assert preflight.main(argv, CONF) == preflight.BAD_INPUT
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1 and not list(elsewhere.iterdir())
    return err


@pytest.mark.ci
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["benchmark.samples_per_task=41"],
            "benchmark.batch_size=10: the last batch of task 1 (41 samples) ",
        ),
        (
            ["benchmark.samples_per_task=40", "benchmark.batch_size=1"],
            "benchmark.batch_size=1: every batch of task 1 (40 samples) ",
        ),
        (
            ["benchmark.samples_per_task=40", "benchmark.batch_size=[8,13]"],
            "benchmark.batch_size=13: the last batch of task 2 (40 samples) ",
        ),
        (["-m", "benchmark.samples_per_task=40,41"], "the last batch of task 1 (41 samples) "),
        (
            ["benchmark.samples_per_task=21", "algo=joint", "backend=jax"],
            "the last batch of task 1 (21 samples) ",
        ),
    ],
)
def test_one_message_and_no_directory(argv, said, capfd, elsewhere):
    flags = [word for word in argv if word == "-m"]
    err = refused([*flags, *NORM, *argv[len(flags) :]], capfd, elsewhere)
    assert said in err and err.endswith(SAID)


@pytest.mark.ci
def test_batches_of_one_are_fine_without_batch_norm(elsewhere):
    argv = ["algo=naive", "benchmark.num_tasks=2", "benchmark.samples_per_task=41"]
    assert preflight.main(argv, CONF) == 0
    assert preflight.main([*NORM, "benchmark.samples_per_task=42"], CONF) == 0


def task_sizes(seed: int) -> np.ndarray:
    """Return the training samples of two tasks in the class order that a seed draws."""
    counts = np.array([143, 145, 143, 146, 147, 149, 145, 144, 135, 143])
    # the seed, the index of "tasks" among the streams, the index of the class order
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1, 3])))
    return counts[rng.permutation(10)].reshape(2, 5).sum(1)


@pytest.mark.ci
def test_every_seed_is_checked(capfd, elsewhere):
    """With a random class order, the sizes of tasks depend on the seed."""
    lonely = [bool((task_sizes(seed) % 7 == 1).any()) for seed in range(50)]
    good, bad = lonely.index(False), lonely.index(True)
    argv = [*NORM, "benchmark=split_digits", "benchmark.class_order=random"]
    argv += ["benchmark.batch_size=7"]
    assert preflight.main([*argv, f"seed={good}"], CONF) == 0
    assert refused([*argv, f"seed=[{good},{bad}]"], capfd, elsewhere).endswith(SAID)


@dataclass(kw_only=True, eq=False)
class Mine(Wrapped):
    """A user's network, whose layers are known only after it is built."""

    layout: str = "flat"
    norm: bool = True

    def make_body(self, input_shape: tuple[int, int, int]) -> nn.Module:
        layers = [nn.Linear(64, 8), *([nn.BatchNorm1d(8)] if self.norm else []), nn.ReLU()]
        return nn.Sequential(*layers)


def test_a_users_network():
    def made(norm: bool, samples: int) -> BaseAlgorithm:
        small = build("naive", "torch", stream={"samples_per_task": samples})
        return type(small)(
            benchmark=small.benchmark, backbone=Mine(norm=norm), optimizer=small.optimizer
        )

    check_lengths_beforehand(made(False, 41))
    check_lengths_beforehand(made(True, 42))
    with pytest.raises(ConfigError, match="has one sample, which BatchNorm cannot normalise"):
        check_lengths_beforehand(made(True, 41))

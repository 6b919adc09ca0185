"""The config hash changes with everything that changes the numbers, and with nothing else."""

from __future__ import annotations

import pytest

from seqrun.benchmarks import RotatedDigits
from seqrun.config.hash import config_hash, numerics_of, without_added

BASE = ("algo=naive",)
SAME = [
    ("logger=[]",),
    ("logger.local.figures=false",),
    ("callbacks=[]",),
    ("data_dir=/elsewhere",),
    ("resume=never",),
    ("seeds_strategy=sequential",),
    ("allow_targets=[mypkg]",),
    ("hydra.run.dir=x",),
    ("optimizer.momentum=0",),
    ("seed=0",),
]
OTHER = [
    ("optimizer.lr=0.02",),
    ("seed=1",),
    ("seed=[0,1]",),
    ("backend=jax",),
    ("num_threads=2",),
    ("training.chunk_steps=7",),
    ("streams.data=1",),
    ("optimizer=adam",),
    ("benchmark.num_tasks=4",),
    ("allow_targets=[mypkg]", "+callbacks.mine._target_=mypkg.Fails"),
]


KNOWN: dict[str, str] = {}


@pytest.fixture
def base_hash(jobs_of) -> str:
    """Return the hash of BASE, composed once."""
    if not KNOWN:
        KNOWN["base"] = jobs_of(*BASE)[0].hash
    return KNOWN["base"]


@pytest.mark.parametrize("overrides", SAME)
def test_same_hash(jobs_of, base_hash, mypkg, overrides):
    assert jobs_of(*BASE, *overrides)[0].hash == base_hash


@pytest.mark.parametrize("overrides", OTHER)
def test_other_hash(jobs_of, base_hash, mypkg, overrides):
    assert jobs_of(*BASE, *overrides)[0].hash != base_hash


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1e-7, 2e-7),
        (0.1, 0.1000001),
        (1e-300, 1e-301),
        (123456.25, 123456.5),
        (0.1, 0.1 + 2**-56),
        (1e15, 1e15 + 1),
        (1, True),
        (0.5, "0.5"),
    ],
)
def test_values_that_differ_at_all(jobs_of, one, other):
    """Floats are not rounded, and types are told apart."""
    config = jobs_of(*BASE)[0].config

    def with_rate(lr):
        return config_hash({**config, "optimizer": {**config["optimizer"], "lr": lr}})

    assert with_rate(one) != with_rate(other)
    assert with_rate(one) == with_rate(one)


def _reversed(value):
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return value


def test_order_of_keys_makes_no_difference(jobs_of):
    config = jobs_of(*BASE)[0].config
    other = _reversed(config)
    assert list(other) != list(config)
    assert config_hash(other) == config_hash(config)


def test_other_data_is_another_hash(jobs_of, monkeypatch):
    config = jobs_of(*BASE)[0].config
    before = config_hash(config)
    monkeypatch.setattr(RotatedDigits, "data_checksum", lambda self: "other")
    assert config_hash(config) != before


def test_hash_is_twelve_hex_digits(base_hash):
    assert len(base_hash) == 12 and int(base_hash, 16) >= 0


CHANGED = {"observe", "mas_lambda", "clip", "lmc_lr", "lambda_init", "gamma", "dropout", "momentum"}
"""Options of these algorithms whose default is another than at commit 70036af."""
PINNED = {
    ("algo=er", "benchmark=permuted_digits", "backend=jax"): "2c196d39015c",
    ("algo=icarl", "benchmark=split_digits", "benchmark.scenario=class"): "b0e92aa67670",
    (
        "algo=derpp",
        "algo.observe=first_epoch",
        "backbone=resnet18_thin",
        "seed=[0,1,2]",
    ): "5fba5a0eba83",
    ("algo=der", "algo.observe=first_epoch"): "c613b222b636",
    ("algo=mas", "algo.mas_lambda=0.1", "algo.clip=null"): "c22a2b27908f",
    (
        "algo=stable_sgd",
        "algo.gamma=0.6",
        "algo.dropout=0.1",
        "algo.momentum=null",
    ): "8e8a009eeb52",
    ("algo=online_ewc", "algo.clip=null"): "7f452c2be93c",
    (
        "algo=lamaml",
        "algo.lr_alpha=0.1",
        "algo.inner_relu=true",
        "algo.clip=null",
        "optimizer=adam",
        "callbacks=[metrics,early_stopping]",
        "benchmark.validation_fraction=0.1",
        "training.epochs_per_task=3",
    ): "83b3f34031fd",  # early stopping: version 2 of its numbers
    ("algo=agem",): "2ec275e0fee7",
    (
        "algo=agem",
        "algo.reference_updates_statistics=false",
        "backbone.batch_norm=true",
    ): "51a5dbf4773e",
    (
        "algo=icarl",
        "algo.mirrored_means=false",
        "benchmark=split_digits",
        "benchmark.scenario=class",
        "benchmark.horizontal_flip=true",
    ): "7167ebc6a863",
}
"""Command -> hash, as it was at commit 70036af: what users have on their disks has these names.

Where a default changed since, the command names the old value.
"""
RENAMED = {
    ("algo.clip=null",): "7107ae15b851",
    ("algo=kcl", "algo.lambda_init=1"): "bd6965621695",
    (
        "algo=mas",
        "algo.mas_lambda=0.1",
        "algo.clip=null",
        "algo.accumulate=ema",
    ): "17093394bb79",
}
"""Command -> hash of then, where the same configuration gives other numbers now."""


@pytest.mark.parametrize("overrides", PINNED)
def test_hashes_stay_what_they_were(jobs_of, overrides):
    assert jobs_of(*overrides)[0].hash == PINNED[overrides]


@pytest.mark.parametrize(
    "option",
    ["inner_relu", "clip", "lr_alpha", "reference_updates_statistics", "mirrored_means"],
)
def test_a_default_that_changed_numbers_is_another_hash(jobs_of, option):
    """No run from before is taken for one with today's default."""
    for overrides, digest in PINNED.items():
        kept = [o for o in overrides if not o.startswith(f"algo.{option}=")]
        if len(kept) < len(overrides):
            assert jobs_of(*kept)[0].hash != digest
            break
    else:
        raise AssertionError(f"no command sets {option}")


@pytest.mark.parametrize("overrides", RENAMED)
def test_numbers_that_changed_have_another_hash(jobs_of, overrides):
    """By the version of the numbers alone, so that the old run is refused with the reason."""
    (job,) = jobs_of(*overrides)
    assert numerics_of(job.config) == {"algo": 2}
    assert config_hash(job.config, {}) == RENAMED[overrides] != job.hash


@pytest.mark.parametrize("algo", ["der", "derpp", "mas", "kcl", "mcsgd", "stable_sgd"])
def test_a_configuration_without_a_key_has_the_default_of_today(jobs_of, algo):
    """One that leaves out what has another default now does not find its old run."""
    config = jobs_of(f"algo={algo}")[0].config
    bare = {"_target_": config["algo"]["_target_"]}
    without = {k: v for k, v in config["algo"].items() if k not in CHANGED}
    assert config_hash({**config, "algo": without}) == config_hash(config)
    kept = without_added({**config, "algo": bare})["algo"]
    assert set(kept) == {"_target_", *(CHANGED & set(config["algo"]))}

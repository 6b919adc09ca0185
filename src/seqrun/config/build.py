"""An experiment's parts, built and checked, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.backbones.base import BaseBackbone
from seqrun.callbacks import BaseCallback
from seqrun.training import limits
from seqrun.training.callback import has_step_hook
from seqrun.checks import ConfigError
from seqrun.config.schema import (
    check_values,
    config_hash,
    make,
    make_benchmark,
    parts_of,
    seeds_of,
)
from seqrun.loggers import BaseLogger
from seqrun.config.secrets import without_secrets
from seqrun.optimizers.base import BaseOptimizer


def build(config: Mapping[str, Any], seed: int, run_dir: Path | None = None) -> BaseAlgorithm:
    """Make the algorithm of a plain experiment and all that it needs, without loading data.

    Raises:
        ConfigError: an argument that is not allowed, or parts that do not fit together.
    """
    given = {
        "benchmark": make_benchmark(config),
        "backbone": make(config, "backbone", BaseBackbone),
        "optimizer": make(config, "optimizer", BaseOptimizer),
        "callbacks": [make(config, key, BaseCallback) for key in parts_of(config, "callbacks")],
        "loggers": [make(config, key, BaseLogger) for key in parts_of(config, "logger")],
        "training": TrainingOptions(**config["training"]),
        "seed": seed,
        "streams": config["streams"],
        "device": config["device"],
        "num_threads": config["num_threads"],
        "run_dir": run_dir,
        "config": without_secrets(config),
        "config_hash": config_hash(config),
    }
    return make(config, "algo", BaseAlgorithm, provided=list(given))(**given)


def check(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a plain experiment can be built, and its network fits."""
    check_values(config)
    algorithm = build(config, seeds_of(config)[0])
    for logger in algorithm.loggers:
        logger.check()
    limits.check_size(algorithm)
    for callback in algorithm.callbacks:
        if config["seeds_strategy"] == "vmap" and has_step_hook(type(callback)):
            raise ConfigError(
                f"seeds_strategy=vmap: must be auto, processes or sequential with "
                f"{type(callback).__name__}, which is to see every step on the host"
            )


def check_data(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a plain experiment has data that it can be trained on."""
    seeds = seeds_of(config)
    first = build(config, seeds[0])
    first.benchmark.check_data()
    if limits.may_normalise_batches(first):
        for seed in seeds:  # a random order of classes gives tasks other sizes with each
            limits.check_lengths_beforehand(build(config, seed))

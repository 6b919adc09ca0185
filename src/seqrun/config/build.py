"""Build an experiment's parts and check them, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.backbones.base import BaseBackbone
from seqrun.benchmarks.base import BaseBenchmark
from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.config.compose import experiment_of, reason_of
from seqrun.config.experiment import Experiment
from seqrun.config.schema import check_values, part_keys
from seqrun.config.secrets import refuse_secrets, without_secrets
from seqrun.config.targets import make
from seqrun.loggers import BaseLogger
from seqrun.optimizers.base import BaseOptimizer
from seqrun.training import limits
from seqrun.training.callback import has_step_hook


def build(
    experiment: Experiment | Mapping[str, Any], seed: int, run_dir: Path | None = None
) -> BaseAlgorithm:
    """Build the algorithm of an experiment with all its parts, without loading data.

    Raises:
        ConfigError: an argument that is not allowed, or parts that do not fit together.
    """
    experiment = Experiment.of(experiment)
    config = experiment.config
    arguments = {
        "benchmark": make(config, "benchmark", BaseBenchmark),
        "backbone": make(config, "backbone", BaseBackbone),
        "optimizer": make(config, "optimizer", BaseOptimizer),
        "callbacks": [make(config, key, BaseCallback) for key in part_keys(config, "callbacks")],
        "loggers": [make(config, key, BaseLogger) for key in part_keys(config, "logger")],
        "training": TrainingOptions(**config["training"]),
        "seed": seed,
        "streams": config["streams"],
        "device": config["device"],
        "num_threads": config["num_threads"],
        "run_dir": run_dir,
        "config": without_secrets(config),
        "config_hash": experiment.hash,
    }
    return make(config, "algo", BaseAlgorithm, provided=list(arguments))(**arguments)


def check(experiment: Experiment | Mapping[str, Any]) -> BaseAlgorithm:
    """Build an experiment and return the algorithm of its first seed.

    Raises:
        ConfigError: it cannot be built, or its network does not fit into memory.
    """
    experiment = Experiment.of(experiment)
    check_values(experiment.config)
    algorithm = build(experiment, experiment.seeds[0])
    for logger in algorithm.loggers:
        logger.check()
    limits.check_size(algorithm)
    for callback in algorithm.callbacks:
        if experiment.config["seeds_strategy"] == "vmap" and has_step_hook(type(callback)):
            raise ConfigError(
                f"seeds_strategy=vmap: must be auto, processes or sequential with "
                f"{type(callback).__name__}, which must see every step on the host"
            )
    return algorithm


def checked_experiment(cfg: DictConfig) -> tuple[Experiment, BaseAlgorithm]:
    """Resolve and check a composed experiment; return it and the algorithm of its first seed.

    Raises:
        ConfigError: a secret is in plain text, a reference cannot be resolved, or as in `check`.
    """
    refuse_secrets(OmegaConf.to_container(cfg, resolve=False))
    try:
        experiment = experiment_of(cfg)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{key}{reason_of(error)}") from None
    return experiment, check(experiment)


def check_data(experiment: Experiment, first: BaseAlgorithm | None = None) -> None:
    """Raise ConfigError unless the experiment's data exist and it can be trained on them.

    Args:
        experiment: one that passed `check`.
        first: the algorithm of its first seed, if it has been built already.
    """
    first = first or build(experiment, experiment.seeds[0])
    first.benchmark.check_data()
    if first.backbone.may_have_batch_statistics:
        for seed in experiment.seeds:  # each has its own class order, and so its own task sizes
            limits.check_lengths_beforehand(build(experiment, seed))

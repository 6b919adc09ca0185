"""The schema of an experiment: its keys, their types, and a check of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING as REQUIRED

from seqrun.algorithms.base import TrainingOptions
from seqrun.checks import ConfigError, added, must_be_one_of, one_of, whole
from seqrun.config.targets import TARGET, check_backend
from seqrun.evaluation.metrics import METRICS
from seqrun.evaluation.verdict import Expected
from seqrun.plan import STREAMS, RandomStreams

GROUPS = ("algo", "benchmark", "backbone", "optimizer", "callbacks", "logger")
"""Config groups whose options are parts of an experiment."""
STRATEGIES = ("auto", "processes", "vmap", "sequential")
"""How several seeds may be run."""


def _copied(option: Field[Any]) -> Any:
    """Return a dataclass field with the default of another."""
    if option.default_factory is not MISSING:
        return field(default_factory=option.default_factory)
    return field(default=option.default)


# `training` has the fields of TrainingOptions. It cannot be that class, which is frozen: OmegaConf
# would make it a read-only node.
_hints = get_type_hints(TrainingOptions)
_training = [(f.name, _hints[f.name], _copied(f)) for f in fields(TrainingOptions)]
Training = make_dataclass("Training", _training)
Streams = make_dataclass("Streams", [(name, int | None, field(default=None)) for name in STREAMS])
for _made in (Training, Streams):
    _made.__module__ = __name__  # so that a composed experiment can be pickled


@dataclass
class Schema:
    """The top-level keys of an experiment, so that Hydra refuses other keys and wrong types."""

    algo: dict[str, Any] = REQUIRED
    benchmark: dict[str, Any] = REQUIRED
    backbone: dict[str, Any] = REQUIRED
    optimizer: dict[str, Any] = REQUIRED
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    backend: str = REQUIRED
    seed: Any = REQUIRED  # int | list[int]
    device: str = REQUIRED
    num_threads: int | None = None
    data_dir: str = REQUIRED
    resume: str = REQUIRED
    seeds_strategy: str = REQUIRED
    allow_targets: list[str] = field(default_factory=list)
    training: Training = field(default_factory=Training)  # type: ignore[valid-type]
    streams: Streams = field(default_factory=Streams)  # type: ignore[valid-type]
    tags: list[str] = added(default_factory=list)
    notes: str | None = added(None)
    optimized_metric: Any = added("average_accuracy")  # str | list[str]
    expected: Any = None  # of a reproduction: seqrun.evaluation.verdict.Expected


def with_added_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment with the defaults of top-level keys added after it was written."""
    kept = dict(config)
    for key in fields(Schema):
        if key.metadata.get("added") and key.name not in kept:
            kept[key.name] = default_of(key)
    return kept


def default_of(option: Field[Any]) -> Any:
    """Return the default of a dataclass's field; MISSING if it has none."""
    if option.default_factory is not MISSING:
        return option.default_factory()
    return option.default


def seeds_of(config: Mapping[str, Any]) -> list[int]:
    """Return the seeds to run; raise ConfigError if they are not distinct integers >= 0."""
    value = config["seed"]
    seeds = list(value) if isinstance(value, (list, tuple)) else [value]
    if not seeds:
        raise ConfigError("seed=[]: must be an integer >= 0 or a list of at least one")
    for seed in seeds:
        whole("seed", seed, 0)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seed={seeds}: must be a list of different integers")
    return seeds


def check_values(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless all keys are in the schema and their values are allowed."""
    known = [f.name for f in fields(Schema)]
    for key, value in config.items():  # +key=value passes Hydra's own check
        if key not in known:
            raise ConfigError(f"{key}={value}: no such key; {must_be_one_of(known, key)}")
    for key in known:
        if key not in config:
            raise ConfigError(f"{key}: must be given")
    _check_structure(config)
    of_training = [f.name for f in fields(TrainingOptions)]
    for key, names in (("training", of_training), ("streams", list(STREAMS))):
        for name, value in config[key].items():
            if name not in names:
                allowed = must_be_one_of(names, name)
                raise ConfigError(f"{key}.{name}={value}: no such key; {allowed}")
    check_backend(config["backend"])
    one_of("device", config["device"], ("auto", "cpu", "cuda"))
    one_of("resume", config["resume"], ("auto", "never"))
    one_of("seeds_strategy", config["seeds_strategy"], STRATEGIES)
    metrics = config["optimized_metric"]
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        one_of("optimized_metric", str(metric).removesuffix("_task_aware"), METRICS)
    if config["seeds_strategy"] == "vmap" and config["backend"] != "jax":
        raise ConfigError(
            f"seeds_strategy=vmap: must be auto, processes or sequential with "
            f"backend={config['backend']}: only JAX trains several seeds in one program"
        )
    if config["num_threads"] is not None:
        whole("num_threads", config["num_threads"], 1)
    for package in config["allow_targets"]:
        if not all(part.isidentifier() for part in str(package).split(".")):
            raise ConfigError(f"allow_targets={package!r}: must be the name of a package")
    RandomStreams(seeds_of(config)[0], config["streams"])
    if config["expected"] is not None:
        Expected.of(config["expected"])


def _check_structure(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless nodes are nodes and parts have a `_target_`."""
    for key in (*GROUPS, "training", "streams"):
        if not isinstance(config[key], Mapping):
            raise ConfigError(f"{key}={config[key]!r}: must be a node, like those in conf/")
    listed = [part for group in ("callbacks", "logger") for part in part_keys(config, group)]
    for key in ("algo", "benchmark", "backbone", "optimizer", *listed):
        node: Any = config
        for part in key.split("."):
            node = node[part]
        if not isinstance(node, Mapping) or TARGET not in node:
            raise ConfigError(f"{key}: must be a node with a {TARGET}, like those in conf/")
    if not isinstance(config["tags"], (list, tuple)):
        raise ConfigError(f"tags={config['tags']!r}: must be a list of words")
    for key in ("backend", "device", "resume", "seeds_strategy", "data_dir"):
        if not isinstance(config[key], str):
            raise ConfigError(f"{key}={config[key]!r}: must be text")
    metric = config["optimized_metric"]
    if not metric or not isinstance(metric, (str, list, tuple)):
        raise ConfigError(f"optimized_metric={metric!r}: must be a metric, or a list of metrics")
    allowed = config["allow_targets"]
    if not isinstance(allowed, (list, tuple)) or not all(isinstance(p, str) for p in allowed):
        raise ConfigError(f"allow_targets={allowed!r}: must be a list of package names")


def part_keys(config: Mapping[str, Any], group: str) -> list[str]:
    """Return the keys "<group>.<name>" of a group that takes several options, except null ones."""
    return [f"{group}.{name}" for name, node in config[group].items() if node is not None]

"""The experiment as configured: schema, resolvers, plain resolved form, parts and hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from math import isfinite
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.benchmarks.base import BaseBenchmark
from seqrun.callbacks import OBSERVERS, BaseCallback
from seqrun.checks import ConfigError, nearest, one_of, whole
from seqrun.config.environment import read_variable
from seqrun.plan import STREAMS, RandomStreams
from seqrun.runs.seeds import STRATEGIES
from seqrun.config.targets import TARGET, check_arguments, check_backend, find_class, nested
from seqrun.evaluation.verdict import Expected

GROUPS = ("algo", "benchmark", "backbone", "optimizer", "callbacks", "logger")
NOT_HASHED = ("logger", "data_dir", "resume", "seeds_strategy", "allow_targets", "expected")

# The types of `training` are those of the class that receives it; that one is frozen, which
# OmegaConf would take for a node that no override may change.
_hints = get_type_hints(TrainingOptions)
Training = make_dataclass(
    "Training",
    [(f.name, _hints[f.name], field(default=f.default)) for f in fields(TrainingOptions)],
)
Streams = make_dataclass("Streams", [(name, int | None, field(default=None)) for name in STREAMS])


@dataclass
class Experiment:
    """The keys at the top of an experiment, so that Hydra refuses any other and wrong types."""

    algo: dict[str, Any] = MISSING
    benchmark: dict[str, Any] = MISSING
    backbone: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    backend: str = MISSING
    seed: Any = MISSING  # int | list[int]
    device: str = MISSING
    num_threads: int | None = None
    data_dir: str = MISSING
    resume: str = MISSING
    seeds_strategy: str = MISSING
    allow_targets: list[str] = field(default_factory=list)
    training: Training = field(default_factory=Training)  # type: ignore[valid-type]
    streams: Streams = field(default_factory=Streams)  # type: ignore[valid-type]
    expected: Any = None  # of a reproduction: seqrun.evaluation.verdict.Expected


def register() -> None:
    """Make the schema and the resolvers of conf/ known to Hydra; repeating it does no harm."""
    ConfigStore.instance().store(name="schema", node=Experiment)
    for name, resolver in (
        ("oc.env", read_variable),
        ("run_name", lambda _root_: run_name(plain(_root_))),
        ("config_hash", lambda _root_: config_hash(plain(_root_))),
        ("sweep_name", lambda choice: str(choice or "grid").replace("/", "-")),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the experiment as plain data: resolved, without Hydra's node, paths absolute."""
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    with open_dict(cfg):
        cfg.data_dir = str(Path(cfg.data_dir).expanduser().absolute())
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


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
    """Raise ConfigError unless the keys are those of the schema and have values it allows."""
    known = [f.name for f in fields(Experiment)]
    for key, value in config.items():  # +key=value passes Hydra's own check
        if key not in known:
            allowed = f"must be one of {', '.join(known)}{nearest(key, known)}"
            raise ConfigError(f"{key}={value}: no such key; {allowed}")
    for key in known:
        if key not in config:
            raise ConfigError(f"{key}: must be given: the experiment cannot do without")
    _check_structure(config)
    of_training = [f.name for f in fields(TrainingOptions)]
    for key, names in (("training", of_training), ("streams", list(STREAMS))):
        for name, value in config[key].items():
            if name not in names:
                allowed = f"must be one of {', '.join(names)}{nearest(name, names)}"
                raise ConfigError(f"{key}.{name}={value}: no such key; {allowed}")
    check_backend(config["backend"])
    one_of("device", config["device"], ("auto", "cpu", "cuda"))
    one_of("resume", config["resume"], ("auto", "never"))
    one_of("seeds_strategy", config["seeds_strategy"], STRATEGIES)
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
    """Raise ConfigError unless nodes are nodes, and parts have a `_target_`."""
    for key in (*GROUPS, "training", "streams"):
        if not isinstance(config[key], Mapping):
            raise ConfigError(f"{key}={config[key]!r}: must be a node, such as conf/ offers")
    several = [part for group in ("callbacks", "logger") for part in parts_of(config, group)]
    for key in ("algo", "benchmark", "backbone", "optimizer", *several):
        node: Any = config
        for part in key.split("."):
            node = node[part]
        if not isinstance(node, Mapping) or TARGET not in node:
            raise ConfigError(f"{key}: must be a node with a {TARGET}, such as conf/ offers")
    for key in ("backend", "device", "resume", "seeds_strategy", "data_dir"):
        if not isinstance(config[key], str):
            raise ConfigError(f"{key}={config[key]!r}: must be text")
    allowed = config["allow_targets"]
    if not isinstance(allowed, (list, tuple)) or not all(isinstance(p, str) for p in allowed):
        raise ConfigError(f"allow_targets={allowed!r}: must be a list of names of packages")


def make(
    config: Mapping[str, Any],
    key: str,
    base: type,
    *,
    provided: Sequence[str] = (),
) -> Any:
    """Make what the node at `key` describes; with `provided`, return a partial that lacks those.

    Args:
        config: the plain experiment.
        key: "algo", "benchmark", ..., or "callbacks.<name>", "logger.<name>".
        base: class that the node's `_target_` must be derived from.
        provided: arguments that the caller will pass, so that the node may not.

    Raises:
        ConfigError: a `_target_` or an argument that is not allowed; the message names its key.
    """
    node = config
    for part in key.split("."):
        node = node[part]
    if not isinstance(node, Mapping) or TARGET not in node:
        raise ConfigError(f"{key}: must be a node with a {TARGET}, such as conf/{key} offers")
    _refuse_references(key, node)
    allowed = config["allow_targets"]
    found = find_class(key, node[TARGET], base, allowed)
    check_arguments(key, node, found, provided)
    for child_key, child in nested(key, node):
        check_arguments(child_key, child, find_class(child_key, child[TARGET], object, allowed))
    own = {name for name in node if name != TARGET}
    if not provided:
        return with_prefix(key, own, lambda: instantiate(node, _convert_="all"))
    part = with_prefix(key, own, lambda: instantiate(node, _convert_="all", _partial_=True))
    return lambda **given: with_prefix(key, own, lambda: part(**given))


def _refuse_references(key: str, node: Any) -> None:
    """Raise ConfigError if plain data hold what would be resolved once more when it is made."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            _refuse_references(f"{key}.{name}", value)
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            _refuse_references(f"{key}[{place}]", value)
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{key}={node}: must not hold ${{ once its references are resolved")


def with_prefix(prefix: str, own: set[str], call: Any) -> Any:
    """Call; a ConfigError about one of the `own` keys gets `prefix`, for it stands below that."""
    try:
        return call()
    except ConfigError as error:
        cause: ConfigError = error
    except InstantiationException as error:
        if not isinstance(error.__cause__, ConfigError):
            raise
        cause = error.__cause__
    message = str(cause)
    word = message.split("=")[0].split(":")[0].split(".")[0].split("[")[0]
    raise ConfigError(f"{prefix}.{message}" if word in own else message) from None


def make_benchmark(config: Mapping[str, Any]) -> BaseBenchmark:
    """Make the benchmark of the plain experiment, without loading data."""
    return make(config, "benchmark", BaseBenchmark)


def parts_of(config: Mapping[str, Any], group: str) -> list[str]:
    """Return the keys "<group>.<name>" of a group that takes several options; null = left out."""
    return [f"{group}.{name}" for name, node in config[group].items() if node is not None]


def name_of(config: Mapping[str, Any], group: str, base: type) -> str:
    """Return the name that the group's class goes by, such as "ewc"."""
    return find_class(group, config[group][TARGET], base, config["allow_targets"]).name


def run_name(config: Mapping[str, Any]) -> str:
    """Return <algo>-<benchmark>-<config hash>."""
    names = name_of(config, "algo", BaseAlgorithm), name_of(config, "benchmark", BaseBenchmark)
    return "-".join((*names, config_hash(config)))


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hex digits of whatever changes the numbers of the plain experiment.

    In: every key but those of loggers, display, places and strategies; the data's checksum and
    the kind of device. The order of keys and 1 versus 1.0 make no difference.
    """
    kept = {key: value for key, value in config.items() if key not in NOT_HASHED}
    places = ("data_dir", "path")  # what is there enters by its checksum
    kept["benchmark"] = {k: v for k, v in config["benchmark"].items() if k not in places}
    kept["callbacks"] = {
        key: config["callbacks"][key.removeprefix("callbacks.")]
        for key in parts_of(config, "callbacks")
        if not _only_shows(config, key)
    }
    kept["device"] = device_of(config)
    kept["data_checksum"] = make_benchmark(config).data_checksum()
    text = json.dumps(_canonical(kept), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def device_of(config: Mapping[str, Any]) -> str:
    """Return the kind of device, "cpu" or "cuda", that the plain experiment runs on."""
    algorithm = find_class("algo", config["algo"][TARGET], BaseAlgorithm, config["allow_targets"])
    return algorithm.engine_type.find_device(config["device"])


def _only_shows(config: Mapping[str, Any], key: str) -> bool:
    """Whether the callback is one of those that observe a run and cannot change it."""
    target = config["callbacks"][key.removeprefix("callbacks.")][TARGET]
    found = find_class(key, target, BaseCallback, config["allow_targets"])
    return found in OBSERVERS


def _canonical(value: Any) -> Any:
    """Return `value` with whole floats as integers, so that 1 and 1.0 are one number.

    One that is not finite becomes text: whether it is allowed is for the part to say.
    """
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return repr(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def read_config(path: Path) -> dict[str, Any] | None:
    """Return a run's config.yaml; None if there is none, or something else."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return None
    return config if isinstance(config, dict) else None  # type: ignore[return-value]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return "key: old value -> new value" for every key that differs and enters the hash."""
    before, after = _flat(old), _flat(new)
    lines = []
    for key in [*before, *(k for k in after if k not in before)]:
        was, now = before.get(key, "-"), after.get(key, "-")
        if key.split(".")[0] not in NOT_HASHED and _canonical(was) != _canonical(now):
            lines.append(f"{key}: {was} -> {now}")
    return lines


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def dotted_keys(cfg: DictConfig) -> list[str]:
    """Return every key of a composed experiment, dotted, without `_target_`."""
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    nodes = [key for key, value in container.items() if isinstance(value, dict)]
    flat = _flat({str(k): v for k, v in container.items() if k != "hydra"})
    return [*map(str, nodes), *(key for key in flat if not key.endswith(TARGET))]

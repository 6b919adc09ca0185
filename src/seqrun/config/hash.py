"""Identify experiments: their config hash, their name, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.backbones.base import BaseBackbone
from seqrun.benchmarks.base import BaseBenchmark
from seqrun.callbacks import OBSERVERS, BaseCallback
from seqrun.config.schema import Schema, default_of, part_keys
from seqrun.config.targets import TARGET, find_class, find_target, make, nested
from seqrun.files import flatten
from seqrun.optimizers.base import BaseOptimizer

NOT_HASHED = (
    "logger",
    "data_dir",
    "resume",
    "seeds_strategy",
    "allow_targets",
    "expected",
    "tags",
    "notes",
    "optimized_metric",
)
"""Top-level keys that do not affect the results."""
PARTS_OF_ALGORITHM = {
    "benchmark": BaseBenchmark,
    "backbone": BaseBackbone,
    "optimizer": BaseOptimizer,
}
PLACES = ("data_dir", "path")
"""Keys of a benchmark that locate its data; the data enter the hash by their checksum."""


def config_hash(config: Mapping[str, Any], numerics: Mapping[str, int] | None = None) -> str:
    """Return a hash (12 hex digits) of everything that affects the results of an experiment.

    The hash covers all keys except those of loggers, display, data locations and strategies. It
    also covers the data's checksum, the kind of device, and every `numerics` above 1. The order
    of keys makes no difference, nor does 1 versus 1.0. An option that was added later (see
    `seqrun.checks.added`) counts only if it changes the behaviour from before, and one whose
    default changed (`seqrun.checks.changed`) counts also where the configuration leaves it out.

    Args:
        config: the experiment as plain data.
        numerics: versions to use instead of those that the parts have now.
    """
    kept = {key: value for key, value in without_added(config).items() if key not in NOT_HASHED}
    kept["benchmark"] = {k: v for k, v in kept["benchmark"].items() if k not in PLACES}
    callbacks = _hashed_callbacks(config)
    kept["callbacks"] = {key: kept["callbacks"][key.partition(".")[2]] for key in callbacks}
    kept["device"] = device_of(config)
    kept["data_checksum"] = make(config, "benchmark", BaseBenchmark).data_checksum()
    if numerics is None:
        numerics = numerics_of(config)
    if numerics:
        kept["numerics"] = dict(numerics)
    text = json.dumps(_canonical(kept), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_name(config: Mapping[str, Any], digest: str) -> str:
    """Return <algo>-<benchmark>-<config hash>."""
    allowed = config["allow_targets"]
    algorithm = find_class("algo", config["algo"][TARGET], BaseAlgorithm, allowed)
    benchmark = find_target("benchmark", config["benchmark"][TARGET], BaseBenchmark, allowed)
    if not isinstance(benchmark, type):  # a function that makes one
        benchmark = make(config, "benchmark", BaseBenchmark)
    return f"{algorithm.name}-{benchmark.name}-{digest}"


def device_of(config: Mapping[str, Any]) -> str:
    """Return the kind of device, "cpu" or "cuda", that an experiment runs on."""
    algorithm = find_class("algo", config["algo"][TARGET], BaseAlgorithm, config["allow_targets"])
    return algorithm.engine_type.find_device(config["device"])


def numerics_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Return key -> version of the numbers, for every hashed part above version 1."""
    found = {key: _numerics(key, node, config) for key, node in _hashed_parts(config)}
    if device_of(config) == "cuda":  # products were in TF32 on JAX, convolutions on PyTorch
        found["training"] = 2
    return {key: number for key, number in found.items() if number > 1}


def without_added(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment without options that were added later and change no numbers.

    Options that a part's node leaves out and whose default changed are in it. Loggers are left
    unchanged.
    """
    kept = _without_unchanged(config, Schema, is_changed=False)
    kept["training"] = _without_unchanged(config["training"], TrainingOptions, is_changed=False)
    for key in ("algo", "benchmark", "backbone", "optimizer", "callbacks"):
        kept[key] = _part_without_added(key, config[key], config)
    return kept


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return "key: old value -> new value" for every key that differs and enters the hash.

    Args:
        old: the config.yaml of a run. It may come from anyone, so none of its classes is imported.
        new: an experiment as plain data.
    """
    before, hashed = flatten(old), flatten(without_added(new))
    after = hashed | flatten(new)
    lines = []
    for key in [*before, *(k for k in after if k not in before)]:
        was, now = before.get(key, "-"), after.get(key, "-")
        if key.split(".")[0] in NOT_HASHED or (key not in before and key not in hashed):
            continue
        if _canonical(was) != _canonical(now):
            lines.append(f"{key}: {was} -> {now}")
    return lines


def read_config(path: Path) -> dict[str, Any] | None:
    """Return the content of a run's config.yaml; None if it is missing or not a configuration."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return None
    return {str(k): v for k, v in config.items()} if isinstance(config, dict) else None


def _hashed_callbacks(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of the callbacks that may change a run; the others observe it."""
    found = []
    for key in part_keys(config, "callbacks"):
        target = config["callbacks"][key.partition(".")[2]][TARGET]
        if find_target(key, target, BaseCallback, config["allow_targets"]) not in OBSERVERS:
            found.append(key)
    return found


def _hashed_parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (key, node) of every part that enters the hash, nested ones included."""
    for key in ("algo", "benchmark", "backbone", "optimizer", *_hashed_callbacks(config)):
        group, _, name = key.partition(".")
        node = config[group][name] if name else config[group]
        yield key, node
        yield from nested(key, node)


def _numerics(key: str, node: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Return the version of the numbers of one part."""
    found = find_target(key, node[TARGET], object, config["allow_targets"])
    numerics = getattr(found, "numerics", 1)  # a nested class may be from another package
    if not callable(numerics):
        return numerics
    options = {option.name: default_of(option) for option in _options(found)}
    options |= {name: value for name, value in node.items() if name != TARGET}
    if key == "algo":
        options |= {part: make(config, part, base) for part, base in PARTS_OF_ALGORITHM.items()}
        options["training"] = TrainingOptions(**config["training"])
    return numerics(options)


def _options(found: Any) -> tuple[Field[Any], ...]:
    return fields(found) if is_dataclass(found) else ()


def _part_without_added(key: str, value: Any, config: Mapping[str, Any]) -> Any:
    """Return a node, or a value within one, without added options that change no numbers."""
    if isinstance(value, Mapping):
        if TARGET in value:
            found = find_target(key, value[TARGET], object, config["allow_targets"])
            is_changed = any("before" in option.metadata for option in _options(found)) and (
                not callable(getattr(found, "numerics", 1)) or _numerics(key, value, config) > 1
            )
            value = _without_unchanged(value, found, is_changed=is_changed)
        return {k: _part_without_added(f"{key}.{k}", v, config) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_part_without_added(f"{key}[{i}]", v, config) for i, v in enumerate(value)]
    return value


def _without_unchanged(node: Mapping[str, Any], found: type, *, is_changed: bool) -> dict[str, Any]:
    """Return the arguments of a class without its added options whose values change no numbers.

    Options whose default changed are in the result even if `node` leaves them out.

    Args:
        node: the arguments.
        found: the class.
        is_changed: whether the defaults of options that name another value as that from before
            change the numbers.
    """
    unchanged: dict[str, list[Any]] = {}
    defaults = {}
    for option in _options(found):
        default = default_of(option)
        if option.metadata.get("added"):
            before = option.metadata.get("before", default)
            values = [before] if is_changed else [before, default]
            unchanged[option.name] = [_canonical(value) for value in values]
        if option.metadata.get("changed") or "before" in option.metadata:
            defaults[option.name] = default
    arguments = defaults | dict(node)
    return {k: v for k, v in arguments.items() if _canonical(v) not in unchanged.get(k, ())}


def _canonical(value: Any) -> Any:
    """Return `value` with whole floats as integers, so that 1 and 1.0 give the same hash.

    A float that is not finite becomes text; the part itself checks whether it is allowed.
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

"""Check what configuration files set: they must not run code or reveal a secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from seqrun.checks import ConfigError
from seqrun.config.compose import FILE_GROUPS, composed
from seqrun.config.schema import GROUPS
from seqrun.config.secrets import names_secret

MAX_VALUES = 100_000
"""Most values that a YAML file may have once its aliases are expanded, as Hydra does."""
FILE_KEYS = ("mode", "sweeper")
"""Keys of Hydra's node that a file may set."""
HYDRA_KEYS = ("overrides", "runtime")
"""Keys of Hydra's node that only Hydra itself sets."""
SWEEPER_KEYS = ("params", "direction", "n_trials", "n_jobs", "sampler", "study_name")
"""Keys of a sweeper that a file may set; others can name functions to call or files to write."""
SAMPLER = re.compile(r"(optuna\.samplers|hydra_plugins\.seqrun\.\w+)\.[A-Z]\w*Sampler\w*")
FROM_VARIABLE = re.compile(r"\$\{oc\.env:SEQRUN_\w+\}")
KEY = re.compile(r"[+~]*\w+(\.\w+)*")
"""Matches a key of an experiment; other overrides choose a file, or where its content goes."""
NOT_SEARCHED = ("hydra", "allow_targets", *FILE_GROUPS)
"""Keys for which a search must not choose values."""


def check_yaml(folder: Path, groups: Iterable[str]) -> None:
    """Raise ConfigError if a YAML file of a configuration folder cannot be loaded safely.

    Args:
        folder: has files, and one folder of files per group.
        groups: the folders to check; others may hold anything.
    """
    paths = [*folder.glob("*.yaml"), *(p for g in groups for p in (folder / g).rglob("*.yaml"))]
    for path in sorted(paths):
        try:
            text = path.read_text(encoding="utf-8")
            if "*" in text and _num_values(yaml.compose(text, yaml.SafeLoader), {}) > MAX_VALUES:
                raise ConfigError(f"{path}: has aliases that stand for over {MAX_VALUES} values")
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is not UTF-8 text") from None
        except RecursionError:  # also raised for an alias of an enclosing node
            raise ConfigError(f"{path}: is nested too deeply") from None
        except (OSError, yaml.YAMLError):
            continue  # Hydra reports it if it is chosen


def _num_values(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Return the number of values of a node, aliases expanded; `sizes` caches the counts."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        parts = node.value if isinstance(node, yaml.SequenceNode) else sum(node.value, ())
        sizes[id(node)] = 1 + sum(_num_values(part, sizes) for part in parts)
    return sizes[id(node)]


def refuse_secrets(node: Any, key: str = "", *, is_secret: bool = False) -> None:
    """Raise ConfigError if Hydra would record a secret in plain text.

    Args:
        node: an unresolved configuration, or a value in it.
        key: its key, for messages.
        is_secret: whether a key above it names a secret.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{key}.{name}" if key else str(name)
            refuse_secrets(value, below, is_secret=is_secret or names_secret(str(name)))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            refuse_secrets(value, f"{key}[{place}]", is_secret=is_secret)
    elif is_secret and node not in (None, "") and not FROM_VARIABLE.fullmatch(str(node)):
        raise ConfigError(
            f"{key}: a secret would be recorded in plain text: put it into an environment "
            "variable SEQRUN_<NAME> and give ${oc.env:SEQRUN_<NAME>} here"
        )


def may_choose_file(key: str) -> bool:
    """Return True if an override of this key may choose an option of a group, so a file."""
    return not KEY.fullmatch(key) or key.lstrip("+~") in (*GROUPS, *FILE_GROUPS)


def check_files(cfg: DictConfig, name: str, typed: Sequence[str], given: Sequence[str]) -> None:
    """Raise ConfigError if a chosen sweep or reproduction sets what it may not.

    A launcher's `setup` or a logging configuration would run code before seqrun starts, so only the
    command line may set them. It is composed without the files; any difference comes from these.

    Args:
        cfg: the composed experiment.
        name: name of the primary configuration.
        typed: overrides of the command line. Hydra's node has them too, but files can change it.
        given: all overrides that `cfg` was composed of, including those that a search chose.
    """
    choices = {group: cfg.hydra.runtime.choices.get(group) for group in FILE_GROUPS}
    where = ", ".join(f"{group}={choice}" for group, choice in choices.items() if choice)
    if not where:
        return
    kept = [o for o in typed if o.lstrip("+~").startswith(("hydra", "allow_targets"))]
    kept = [o for o in kept if not o.lstrip("+~").startswith("hydra.sweeper.")]  # a file's own
    alone = composed(name, kept)
    node, node_alone = _unresolved(cfg.hydra), _unresolved(alone.hydra)
    for key in node:
        if key in FILE_KEYS or node[key] == node_alone.get(key):
            continue
        if key not in HYDRA_KEYS or _is_forged(key, node, node_alone, given):
            allowed = " and ".join(FILE_KEYS)
            raise ConfigError(f"{where}: sets hydra.{key}; of hydra it may set only {allowed}")
    if cfg.allow_targets != alone.allow_targets:
        raise ConfigError(f"{where}: sets allow_targets, which only the command line may")
    _check_sweeper(node["sweeper"], cfg.hydra.runtime.choices.get("hydra/sweeper"), where, name)


def _check_sweeper(node: Mapping[str, Any], choice: str | None, where: str, name: str) -> None:
    """Raise ConfigError if a file sets a key or value of a sweeper that it may not set.

    Args:
        node: the sweeper's node, unresolved.
        choice: the option of hydra/sweeper.
        where: the file, for messages.
        name: name of the primary configuration.
    """
    chosen = [] if choice is None else [f"hydra/sweeper={choice}"]
    alone = _unresolved(composed(name, chosen).hydra)["sweeper"]
    place = f"{where}: hydra.sweeper"
    if not isinstance(node, Mapping):
        raise ConfigError(f"{place}={node}: must be a node")
    for key, value in node.items():
        if value == alone.get(key):
            continue
        if key not in SWEEPER_KEYS:
            allowed = ", ".join(SWEEPER_KEYS)
            raise ConfigError(f"{where}: sets hydra.sweeper.{key}; it may set only {allowed}")
        if "${" in str(value):
            raise ConfigError(f"{place}.{key}: must not hold references ${{...}}")
    _check_sampler(node.get("sampler"), f"{place}.sampler")
    for target in _targets({k: v for k, v in node.items() if k not in ("_target_", "sampler")}):
        raise ConfigError(f"{place}: _target_={target}: only a sampler may have one")
    params = node.get("params")
    if not isinstance(params, Mapping | None):
        raise ConfigError(f"{place}.params={params}: must be a node")
    for key in params or {}:
        if not KEY.fullmatch(str(key)):
            raise ConfigError(f"{place}.params.{key}: must be a key such as optimizer.lr")
        if str(key).lstrip("+~").split(".")[0] in NOT_SEARCHED:
            raise ConfigError(f"{place}.params.{key}: only the command line may set it")


def _check_sampler(sampler: Any, place: str) -> None:
    """Raise ConfigError unless a sweeper's sampler is None or one sampler, with plain arguments."""
    if sampler is None:
        return
    if not isinstance(sampler, Mapping):
        raise ConfigError(f"{place}={sampler}: must be a node")
    target = sampler.get("_target_")
    if not SAMPLER.fullmatch(str(target)):
        raise ConfigError(f"{place}._target_={target}: must be a sampler")
    for inner in _targets([v for v in sampler.values() if not isinstance(v, str)]):
        raise ConfigError(f"{place}: _target_={inner}: must not be there")


def _is_forged(
    key: str, node: Mapping[str, Any], alone: Mapping[str, Any], given: Sequence[str]
) -> bool:
    """Return True if a file changed what only Hydra sets: overrides and facts about the run."""
    if key == "overrides":
        return any(line not in given for line in (*node[key]["hydra"], *node[key]["task"]))
    facts = {k: v for k, v in node[key].items() if k not in ("choices", "config_sources")}
    return facts != {k: v for k, v in alone[key].items() if k not in ("choices", "config_sources")}


def _unresolved(node: DictConfig) -> Any:
    """Return Hydra's node as plain data, without the key of hydra.job that overrides change."""
    container: Any = OmegaConf.to_container(node, resolve=False)
    container["job"].pop("override_dirname", None)
    return container


def _targets(node: Any) -> Iterator[Any]:
    """Yield every `_target_` within a node."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield value
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)

"""What files may set, and what would run code or show a secret if they did."""

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

MOST_NODES = 100_000
"""Values that a YAML file may hold with its aliases written out, as Hydra writes them out."""
OF_FILES = ("mode", "sweeper")
"""Keys of Hydra's node that a file may set."""
OF_HYDRA = ("overrides", "runtime")
"""Keys of Hydra's node that Hydra itself sets."""
OF_SWEEPER = ("params", "direction", "n_trials", "n_jobs", "sampler", "study_name")
"""Keys of a sweeper that a file may set; others name functions to call and places to write to."""
SAMPLER = re.compile(r"(optuna\.samplers|hydra_plugins\.seqrun\.\w+)\.[A-Z]\w*Sampler\w*")
FROM_VARIABLE = re.compile(r"\$\{oc\.env:SEQRUN_\w+\}")
KEY = re.compile(r"[+~]*\w+(\.\w+)*")
"""A key of an experiment; other overrides choose files, or say where their content goes."""
NOT_SEARCHED = ("hydra", "allow_targets", *FILE_GROUPS)
"""Keys that no search may choose values of."""


def check_yaml(folder: Path, groups: Iterable[str]) -> None:
    """Raise ConfigError if a YAML file of a configuration folder cannot be loaded safely.

    Args:
        folder: holds files, and a folder of files for every group.
        groups: the folders to look at; others may hold anything.
    """
    paths = [*folder.glob("*.yaml"), *(p for g in groups for p in (folder / g).rglob("*.yaml"))]
    for path in sorted(paths):
        try:
            text = path.read_text(encoding="utf-8")
            if "*" in text and _num_values(yaml.compose(text, yaml.SafeLoader), {}) > MOST_NODES:
                raise ConfigError(f"{path}: has aliases that stand for over {MOST_NODES} values")
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is no text in UTF-8") from None
        except RecursionError:  # an alias of a node around it is one, too
            raise ConfigError(f"{path}: is nested too deeply") from None
        except (OSError, yaml.YAMLError):
            continue  # Hydra reports it if it is chosen


def _num_values(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Return the number of values that a node stands for; `sizes` keeps what was counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        parts = node.value if isinstance(node, yaml.SequenceNode) else sum(node.value, ())
        sizes[id(node)] = 1 + sum(_num_values(part, sizes) for part in parts)
    return sizes[id(node)]


def refuse_secrets(node: Any, key: str = "", *, is_secret: bool = False) -> None:
    """Raise ConfigError if a secret is where Hydra will record it in plain text.

    Args:
        node: unresolved.
        key: where it stands.
        is_secret: whether a key above it says that it is one.
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


def brings_a_file(key: str) -> bool:
    """Return True if an override of this key may choose an option of a group, which is a file."""
    return not KEY.fullmatch(key) or key.lstrip("+~") in (*GROUPS, *FILE_GROUPS)


def check_files(cfg: DictConfig, name: str, said: Sequence[str], given: Sequence[str]) -> None:
    """Raise ConfigError if a chosen sweep or reproduction sets what it may not.

    A launcher's `setup` or a logging configuration would run code before anything of ours. The
    command line may set them: it is composed alone, and whatever differs comes from the files.

    Args:
        cfg: the composed experiment.
        name: of the primary configuration.
        said: overrides of the command line; the list in Hydra's node is one that files can write.
        given: all overrides that it was composed of, those that a search chose too.
    """
    choices = {group: cfg.hydra.runtime.choices.get(group) for group in FILE_GROUPS}
    where = ", ".join(f"{group}={choice}" for group, choice in choices.items() if choice)
    if not where:
        return
    kept = [o for o in said if o.lstrip("+~").startswith(("hydra", "allow_targets"))]
    kept = [o for o in kept if not o.lstrip("+~").startswith("hydra.sweeper.")]  # a file's own
    alone = composed(name, kept)
    node, node_alone = _unresolved(cfg.hydra), _unresolved(alone.hydra)
    for key in node:
        if key in OF_FILES or node[key] == node_alone.get(key):
            continue
        if key not in OF_HYDRA or _is_forged(key, node, node_alone, given):
            raise ConfigError(f"{where}: sets hydra.{key}; of hydra it may set only mode, sweeper")
    if cfg.allow_targets != alone.allow_targets:
        raise ConfigError(f"{where}: sets allow_targets, which only the command line may")
    _check_sweeper(node["sweeper"], cfg.hydra.runtime.choices.get("hydra/sweeper"), where, name)


def _check_sweeper(node: Mapping[str, Any], choice: str | None, where: str, name: str) -> None:
    """Raise ConfigError if a file sets more of a sweeper than what it searches, and for how long.

    Args:
        node: the sweeper's node, unresolved.
        choice: of hydra/sweeper.
        where: the file, for messages.
        name: of the primary configuration.
    """
    chosen = [] if choice is None else [f"hydra/sweeper={choice}"]
    alone = _unresolved(composed(name, chosen).hydra)["sweeper"]
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}: hydra.sweeper={node}: must be a node")
    for key, value in node.items():
        if value == alone.get(key):
            continue
        if key not in OF_SWEEPER:
            allowed = ", ".join(OF_SWEEPER)
            raise ConfigError(f"{where}: sets hydra.sweeper.{key}; of it it may set only {allowed}")
        if "${" in str(value):
            raise ConfigError(f"{where}: hydra.sweeper.{key}: must not hold references ${{...}}")
    sampler = node.get("sampler")
    if not isinstance(sampler, Mapping | None):
        raise ConfigError(f"{where}: hydra.sweeper.sampler={sampler}: must be a node")
    if isinstance(sampler, Mapping) and not SAMPLER.fullmatch(str(sampler.get("_target_"))):
        target = sampler.get("_target_")
        raise ConfigError(f"{where}: hydra.sweeper.sampler._target_={target}: must be a sampler")
    for target in _targets({k: v for k, v in node.items() if k not in ("_target_", "sampler")}):
        raise ConfigError(f"{where}: hydra.sweeper: _target_={target}: only a sampler may have one")
    for target in _targets([v for v in (sampler or {}).values() if not isinstance(v, str)]):
        raise ConfigError(f"{where}: hydra.sweeper.sampler: _target_={target}: must not be there")
    params = node.get("params")
    if not isinstance(params, Mapping | None):
        raise ConfigError(f"{where}: hydra.sweeper.params={params}: must be a node")
    for key in params or {}:
        if not KEY.fullmatch(str(key)):
            raise ConfigError(f"{where}: hydra.sweeper.params.{key}: must be a key as optimizer.lr")
        if str(key).lstrip("+~").split(".")[0] in NOT_SEARCHED:
            raise ConfigError(f"{where}: hydra.sweeper.params.{key}: only the command line may")


def _is_forged(
    key: str, node: Mapping[str, Any], alone: Mapping[str, Any], given: Sequence[str]
) -> bool:
    """Return True if a file wrote into what Hydra itself sets: overrides, facts about the run."""
    if key == "overrides":
        return any(line not in given for line in (*node[key]["hydra"], *node[key]["task"]))
    facts = {k: v for k, v in node[key].items() if k not in ("choices", "config_sources")}
    return facts != {k: v for k, v in alone[key].items() if k not in ("choices", "config_sources")}


def _unresolved(node: DictConfig) -> Any:
    """Return Hydra's node as plain data, without the one key of its job that overrides change."""
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

"""Compose an experiment with Hydra, and report every error in one line."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from seqrun import CONF
from seqrun.algorithms.base import BaseAlgorithm
from seqrun.checks import ConfigError, first_line, must_be_one_of, nearest
from seqrun.config.experiment import Experiment
from seqrun.config.schema import GROUPS, Schema
from seqrun.config.secrets import read_variable
from seqrun.config.trust import FILE_GROUPS, KEY, TARGET, find, from_environment
from seqrun.files import flatten

TYPES = {"Float": "a number", "Integer": "an integer", "Boolean": "true or false"}
"""OmegaConf's types -> what users call them."""
FILES = (*FILE_GROUPS, "experiment", "local", "debug")
"""Groups whose files may set any key, and choose of any group."""
PATHS = ("path", "directory", "data_dir")
"""Keys of parts that hold a path."""
PLUGINS = {
    ("hydra/launcher", "joblib"): "hydra-joblib-launcher",
    ("hydra/launcher", "ray"): "hydra-ray-launcher",
    ("hydra/launcher", "ray_aws"): "hydra-ray-launcher",
    ("hydra/launcher", "rq"): "hydra-rq-launcher",
    ("hydra/sweeper", "ax"): "hydra-ax-sweeper",
    ("hydra/sweeper", "nevergrad"): "hydra-nevergrad-sweeper",
}
"""Group and option of Hydra's that a package of its own has -> that package."""
MAX_VALUES = 100_000
"""Most values that a YAML file may have once its aliases are expanded, as Hydra does."""
NEED_MULTIRUN = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "sweeps")
"""Keys that have an effect only in a multirun."""

BASIC = {
    "hydra/launcher": {"_target_": "hydra_plugins.seqrun.in_process.InProcessLauncher"},
    "hydra/sweeper": {
        "_target_": "hydra_plugins.seqrun.grid.GridSweeper",
        "max_batch_size": None,
        "params": None,
    },
}
"""What this program has for `basic`, Hydra's defaults: with signals, records and a summary.

A default in conf/config.yaml could not be overridden by sweeps/. A plugin that registered it would
do so for every Hydra program of the environment.
"""

_known: dict[str, Experiment] = {}
"""The experiments of this command by their content, so that each is hashed only once."""


def register() -> None:
    """Register what conf/ needs with Hydra, in this process alone, and forget known experiments.

    The data may have changed since the last command, so experiments are hashed again.
    """
    _known.clear()
    Plugins.instance()  # loads Hydra's own, which would take the place of BASIC
    store = ConfigStore.instance()
    newer = "replace" in inspect.signature(store.store).parameters  # Hydra 1.4
    options: Any = {"provider": "seqrun", **({"replace": True} if newer else {})}
    store.store(name="schema", node=Schema, **options)
    for group, node in BASIC.items():
        store.store(group=group, name="basic", node=node, **options)
    search = OmegaConf.load(CONF / "hydra" / "sweeper" / "search.yaml")
    search.defaults = [{"sampler": "tpe"}]  # as Optuna's plugin has it
    store.store(group="hydra/sweeper", name="optuna", node=search, **options)
    for name, resolver in (
        ("oc.env", read_variable),
        ("run_name", lambda _root_: experiment_of(_root_).name),
        ("config_hash", lambda _root_: experiment_of(_root_).hash),
        ("sweep_name", lambda choice: str(choice or "grid").replace("/", "-")),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)


@contextmanager
def composing(config_dir: str | Path, added: str | Path | None = None) -> Iterator[None]:
    """Let Hydra compose from `config_dir` within this block, and from `added` as --config-dir."""
    directory = str(Path(config_dir).absolute())
    with initialize_config_dir(version_base="1.3", config_dir=directory, job_name="run"):
        hydra = GlobalHydra.instance().hydra
        if added is not None and hydra is not None:
            path, schema = hydra.config_loader.get_search_path(), SearchPathQuery(provider="schema")
            path.prepend("command-line", f"file://{Path(added).absolute()}", schema)
            make: Any = type(hydra.config_loader)
            hydra.config_loader = make(path)  # the one there has read the path already
        yield


def experiment_of(cfg: DictConfig) -> Experiment:
    """Return the composed experiment; within a command, the same object for the same content."""
    found = Experiment.of(resolved(cfg))
    return _known.setdefault(json.dumps(found.config, default=repr), found)


@contextmanager
def hydra_config(cfg: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` refer to a composed configuration within the block.

    A run directory that is not known yet is the working directory.
    """
    hydra = HydraConfig.instance()
    before, unknown = hydra.cfg, OmegaConf.is_missing(cfg.hydra.runtime, "output_dir")
    with read_write(cfg.hydra):
        if unknown:
            cfg.hydra.runtime.output_dir = os.getcwd()
        hydra.set_config(cfg)
        try:
            yield
        finally:
            hydra.cfg = before
            if unknown:
                OmegaConf.set_readonly(cfg.hydra, None)
                cfg.hydra.runtime.output_dir = MISSING


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the experiment as plain data: resolved, without Hydra's node, paths absolute."""
    if "hydra" not in cfg:
        return _resolved(cfg, HydraConfig.get() if HydraConfig.initialized() else None)
    with hydra_config(cfg):
        return _resolved(cfg, cfg.hydra)


def _resolved(cfg: DictConfig, hydra: Any) -> dict[str, Any]:
    choices = hydra.runtime.choices if hydra else {}
    here = hydra.runtime.cwd if hydra else os.getcwd()
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    with open_dict(cfg):
        for group, names in default_lists().items():
            if choices.get(group):  # a single name; a list is not among the choices
                files = [OmegaConf.load(CONF / group / f"{name}.yaml") for name in names]
                cfg[group] = OmegaConf.merge(*files, cfg[group])
        if hydra:
            _drop_untouched(cfg, hydra)
        cfg.data_dir = str(Path(here, Path(cfg.data_dir).expanduser()))
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    if hydra and hydra.job.chdir:
        _make_absolute(config, here)
    allowed, more = config.get("allow_targets"), from_environment()
    if isinstance(allowed, list):
        allowed += [package for package in more if package not in allowed]
    return {str(key): value for key, value in config.items()}


def _drop_untouched(cfg: DictConfig, hydra: Any) -> None:
    """Drop the keys of the chosen optimizer's file that another `_target_` would not know.

    They are those that nobody has set: a key that is typed, or has another value, is kept.
    """
    file = CONF / "optimizer" / f"{hydra.runtime.choices.get('optimizer')}.yaml"
    if str(cfg.optimizer.get(TARGET, "")).startswith("seqrun.") or not file.is_file():
        return
    typed = [str(line).lstrip("+").split("=")[0] for line in hydra.overrides.task]
    options: Any = OmegaConf.to_container(OmegaConf.load(file))
    for key, value in options.items():
        if key != TARGET and cfg.optimizer.get(key) == value and f"optimizer.{key}" not in typed:
            del cfg.optimizer[key]


def _make_absolute(node: dict[Any, Any], here: str) -> None:
    """Let the relative paths below a node mean those below `here`, where the command was given."""
    for key, value in node.items():
        if isinstance(value, dict):
            _make_absolute(value, here)
        elif key in PATHS and isinstance(value, str) and value:
            node[key] = str(Path(here, Path(value).expanduser()))


@cache
def default_lists() -> dict[str, list[str]]:
    """Return the groups of which several options are chosen, with their default options."""
    entries = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    assert isinstance(entries, dict)
    chosen = [entry for entry in entries["defaults"] if isinstance(entry, dict)]
    return {k: v for entry in chosen for k, v in entry.items() if isinstance(v, list)}


def with_defaults(overrides: Sequence[str]) -> list[str]:
    """Return a command line in which a single option of a group of several adds to the defaults.

    `logger=wandb` becomes `logger=[console,local,wandb]`, and so each of `logger=wandb,comet`; a
    list stays what it is; null, or `~logger`, becomes []. Hydra by itself would put `wandb` in the
    place of the defaults. Where a file chooses a single option, `resolved` adds the defaults.
    """
    return [_with_defaults(override) for override in overrides]


def _with_defaults(override: str) -> str:
    group, _, value = override.partition("=")
    if override.startswith("~") and override[1:] in default_lists():
        return f"{override[1:]}=[]"
    names = value.split(",")
    if group not in default_lists() or not all(
        re.fullmatch(r"[A-Za-z_][\w/-]*", name) for name in names
    ):
        return override
    if value == "null":
        return f"{group}=[]"
    lists = [",".join(dict.fromkeys([*default_lists()[group], name])) for name in names]
    return f"{group}={','.join(f'[{each}]' for each in lists)}"


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


def may_choose_file(key: str) -> bool:
    """Return True if an override of this key may choose an option of a group, so a file."""
    return not KEY.fullmatch(key) or key.lstrip("+~") in (*GROUPS, *FILES)


def parse(lines: Sequence[str]) -> list[Override]:
    """Parse the overrides of a command line.

    Raises:
        ConfigError: one of them is not an override.
    """
    loader = GlobalHydra.instance().config_loader()
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(lines))
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: {_not_an_override(error)}") from None


def _not_an_override(error: OverrideParseException) -> str:
    """Return why an argument cannot be parsed, and how to write it if quotes are missing."""
    key, is_pair, value = str(error.override).partition("=")
    if is_pair and re.fullmatch(r"[+~]*[\w.@/]+", key) and value[:1] not in ("[", "{", "'", '"'):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return (
            "a value with such characters needs quotes for Hydra, and others around them for the "
            f"shell: '{key}=\"{quoted}\"'"
        )
    reason = first_line(error).removesuffix(".")
    return f"not an override key=value: {reason}"


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose an experiment with Hydra's node; call it within `composing`.

    Args:
        name: name of the primary configuration.
        overrides: each key=value or group=option.

    Raises:
        ConfigError: it cannot be composed.
    """
    try:
        return compose(name, overrides=list(overrides), return_hydra_config=True)
    except MissingConfigException as error:
        raise ConfigError(_missing_option(error)) from None
    except RecursionError:
        raise ConfigError("a chosen file is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error, name, overrides)) from None


def _missing_option(error: MissingConfigException) -> str:
    """Name the option that a group lacks, and the options that it has."""
    path = error.missing_cfg_file
    if path is None or "/" not in path:
        return first_line(error)
    depth = path.rindex("/") if path.startswith("hydra/") else path.index("/")
    group, option = path[:depth], path[depth + 1 :]
    if package := PLUGINS.get((group, option)):
        return f"{group}={option}: needs a plugin of Hydra's: pip install {package}"
    options = options_of(group)
    allowed = must_be_one_of(options, option) if options else "this group has no option"
    hint = f"; put yours into {group}/{option}.yaml, here in {CONF} or in a folder --config-dir"
    return f"{group}={option}: {allowed}" + hint * (group in ("experiment", "local"))


def options_of(group: str) -> list[str]:
    """Return the options of a group; those of sub-groups as <sub-group>/<option>."""
    loader = GlobalHydra.instance().config_loader()
    sub_groups = loader.get_group_options(group, ObjectType.GROUP)
    nested = [f"{sub}/{option}" for sub in sub_groups for option in options_of(f"{group}/{sub}")]
    return [*loader.get_group_options(group), *nested]


def _explain(error: Exception, name: str, overrides: Sequence[str]) -> str:
    """Return Hydra's composition error as one line with the key, the value and what is allowed."""
    text = f"{error}\n{error.__cause__ or ''}"
    wrong_type = re.search(r"Value '(.*)' of type '.*' could not be converted to (\w+)", text)
    full_key = re.search(r"full_key: (\S+)", text)
    if wrong_type and full_key:
        value, kind = wrong_type.groups()
        return f"{full_key[1]}={value}: must be {TYPES.get(kind, kind)}"
    merged = re.search(r"Error merging override \+*([\w.]+)=(\S*)", text)
    if merged and "is not a ListConfig" in text:
        return f"{merged[1]}={merged[2]}: must be a list, such as {merged[1]}=[{merged[2]}]"
    merged = re.search(r"Error merging override \+*([\w.]+)=", text)
    if merged and "Invalid type assigned" in text:
        key = merged[1]
        keys = [k for k in _known_keys(name, overrides) if k.startswith(f"{key}.")]
        given = next(o for o in overrides if o.lstrip("+").split("=")[0] == key)
        return f"{given}: is a node; set its keys one by one: {', '.join(keys)}"
    not_optional = re.search(r"field '([\w.]+)' is not Optional", text)
    if not_optional:
        return f"{not_optional[1]}=null: must not be null"
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(
        r"Key '([^']+)' (?:is )?not in ", text
    )
    if unknown is None:
        reason = first_line(error)
        if reason.endswith("raised while composing config:"):  # the next line says what is wrong
            where, what = reason.split(": ")[0], str(error).splitlines()[1]
            return f"{where}: {full_key[1]}: {what}" if full_key else f"{where}: {what}"
        cause = f": {first_line(error.__cause__)}" if error.__cause__ else ""
        return f"{reason}{cause}"
    key = full_key[1] if full_key and "Could not override" not in text else unknown[1]
    return _no_such_key(key, name, overrides)


def _no_such_key(key: str, name: str, overrides: Sequence[str]) -> str:
    """Return the message about a key that does not exist, with the keys beside it."""
    given = next((o for o in overrides if o.lstrip("+~").split("=")[0].split("@")[0] == key), key)
    if key.startswith("hydra"):
        is_of_multirun = any(key.startswith(f"{k}.") for k in NEED_MULTIRUN)
        hint = " without -m, or the chosen launcher or sweeper lacks it" if is_of_multirun else ""
        return f"{given}: no such key of Hydra's{hint}"
    if key in FILES:
        return f"{given}: must be one of {', '.join(options_of(key))}"
    known = _known_keys(name, overrides)
    parent, _, leaf = key.rpartition(".")
    group, _, option = parent.partition(".")
    if group in default_lists() and option in options_of(group) and parent not in known:
        return f"{given}: {option} is not chosen; {group}={option} adds it to the defaults"
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    if group in GROUPS and parent in known:
        return f"{given}: {_keys_of(parent, leaf, siblings, name, overrides, known)}"
    meant = _nearest_key(key, known)
    if not siblings:
        siblings = [k for k in known if "." not in k]
    return f"{given}: no such key; must be one of {', '.join(siblings)}{meant}"


def _keys_of(
    part: str,
    leaf: str,
    in_file: Sequence[str],
    name: str,
    overrides: Sequence[str],
    known: Sequence[str],
) -> str:
    """Return why a part has no key `leaf`: the keys that its file and its class have.

    Args:
        part: key of the part, such as algo.
        leaf: the key within it that does not exist.
        in_file: the keys of the chosen file.
        name, overrides: what the experiment was composed of.
        known: all keys of the experiment.
    """
    chosen = next((o for o in overrides if o.startswith(f"{part}.{TARGET}=")), None)
    chosen = chosen or next((o for o in overrides if o.startswith(f"{part}=")), part)
    of_class = _arguments_of(part, name, overrides)
    if leaf in of_class:
        return f"its file has no such key; write +{part}.{leaf}, which its class takes"
    names = [key for key in in_file if key in of_class or not of_class]
    more = [key for key in of_class if key not in in_file]
    hint = f"; with + before the key also {', '.join(more)}" * bool(more)
    own = [f"{part}.{key}" for key in [*names, *more]]
    meant = _nearest_key(f"{part}.{leaf}", own) or _nearest_key(f"{part}.{leaf}", known)
    return f"no such key; {chosen} has {', '.join(names) or 'no keys'}{hint}{meant}"


def _nearest_key(key: str, known: Sequence[str]) -> str:
    """Return ' (did you mean X?)' for a key of the same name elsewhere, or the closest."""
    leaf = key.rpartition(".")[2]
    candidates = [k for k in known if "." in k or "." not in key]
    same = [k for k in candidates if k.rpartition(".")[2] == leaf]
    same = same or [k for k in candidates if k.rpartition(".")[2].startswith(f"{leaf}_")]
    return f" (did you mean {same[0]}?)" if same else nearest(key, candidates)


def _arguments_of(part: str, name: str, overrides: Sequence[str]) -> list[str]:
    """Return the arguments of a part's class that an experiment may set; [] if they are unknown."""
    kept = ("allow_targets", "backend", f"{part}.{TARGET}", *GROUPS, *FILES)
    try:
        cfg = compose(name, overrides=[o for o in overrides if o.split("=")[0] in kept])
        node = OmegaConf.select(cfg, part)
        found = find(part, node[TARGET], [*(cfg.get("allow_targets") or []), *from_environment()])
        own = inspect.signature(found).parameters
    except (HydraException, OmegaConfBaseException, ConfigError, ValueError, TypeError):
        return []
    of_runner = inspect.signature(BaseAlgorithm).parameters if part == "algo" else {}
    return [key for key, p in own.items() if key not in of_runner and p.kind != p.VAR_KEYWORD]


def _known_keys(name: str, overrides: Sequence[str]) -> list[str]:
    """Return the keys of the experiment; without its group choices if they cannot be composed."""
    choices = [o for o in overrides if o.split("=")[0] in (*GROUPS, *FILES)]
    for attempt in (choices, []):
        try:
            cfg = compose(name, overrides=attempt)
        except (HydraException, OmegaConfBaseException):
            continue
        return [*_dotted_keys(cfg), *FILES]
    return []


def _dotted_keys(cfg: DictConfig) -> list[str]:
    """Return every dotted key of a composed experiment except `_target_`."""
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    nodes = [key for key, value in container.items() if isinstance(value, dict)]
    flat = flatten({str(k): v for k, v in container.items() if k != "hydra"})
    return [*map(str, nodes), *(key for key in flat if not key.endswith(TARGET))]


def line_of(override: Override) -> str:
    """Return the override as it was written."""
    return override.input_line or ""


def reason_of(error: OmegaConfBaseException) -> str:
    """Return why a reference cannot be resolved: a resolver's own message if it raised one."""
    return first_line(error).removeprefix("ConfigError raised while resolving interpolation: ")

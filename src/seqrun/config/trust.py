"""What may run code: one rule for every `_target_`, and what no file may set.

Every `_target_`, those of Hydra's own node included, must be on the list of this module. Only words
typed on the command line or in the environment widen it (`allow_targets`, `SEQRUN_ALLOW_TARGETS`).
The program's own conf/ is the program; what lies elsewhere, and in sweeps/ and reproductions/, are
files, whoever wrote them.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from seqrun import CONF
from seqrun.checks import ConfigError, nearest

TARGET = "_target_"
VARIABLE = "SEQRUN_ALLOW_TARGETS"
FILE_GROUPS = ("sweeps", "reproductions")
"""Groups of which each file may set keys of any group."""
KEY = re.compile(r"[+~]*\w+(\.\w+)*")
"""Matches a key of an experiment; other overrides choose a file, or where its content goes."""

# ---- the list: what a `_target_` of an experiment may name

CLASSES = (
    "torch.nn",
    "torch.optim",
    "torchvision.models",
    "torchvision.ops",
    "flax.linen",
    "flax.nnx",
)
"""Packages of the frameworks whose classes derived from `BASES` are on the list."""
BASES = (
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "flax.linen.module.Module",
    "flax.nnx.module.Module",
)
TRANSFORMS = "torchvision.transforms"
"""All of its classes are on the list."""
DATASETS = (
    "Caltech101", "DTD", "EuroSAT", "FakeData", "FashionMNIST", "Flowers102", "Food101", "GTSRB",
    "ImageFolder", "KMNIST", "MNIST", "OxfordIIITPet", "QMNIST", "STL10", "SVHN", "USPS",
)  # fmt: skip
"""Classes of torchvision.datasets that read no pickle."""
BUILDERS = (
    "optax",
    "optax.contrib",
    "jax.nn",
    "jax.nn.initializers",
    "flax.linen",
    "flax.linen.initializers",
    "flax.nnx",
    "flax.nnx.initializers",
)
"""Modules whose public functions are on the list, if the frameworks of `BUILT_IN` define them."""
BUILT_IN = ("optax", "jax", "flax.linen", "flax.nnx")
TIMM = "timm.create_model"
TIMM_KEYS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Arguments of timm's that may name a file or a repository to load."""


def from_environment() -> list[str]:
    """Return the packages that SEQRUN_ALLOW_TARGETS names."""
    return os.environ.get(VARIABLE, "").replace(",", " ").split()


def find(where: str, target: Any, allowed: Sequence[str] = ()) -> Any:
    """Return the class or function that a `_target_` names, if it is on the list.

    Args:
        where: the key with its value, for messages.
        target: the value of `_target_`.
        allowed: packages besides seqrun's and the frameworks' that may hold it.

    Raises:
        ConfigError: it is not on the list, or does not exist.
    """
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{where}: must be the dotted name of a class or function")
    module_name, name = ".".join(parts[:-1]), parts[-1]
    own = (*allowed, "seqrun")
    is_public = not any(part.startswith("_") for part in parts)
    roots = (*CLASSES, TRANSFORMS, "torchvision.datasets", "jax.nn", "optax", "timm")
    if not inside(module_name, own) and not (is_public and inside(module_name, roots)):
        raise ConfigError(f"{where}: {_on_the_list(parts[0])}")
    if allowed and os.getcwd() not in sys.path:  # last, so that nothing there hides a package
        sys.path.append(os.getcwd())
    holder = _holder(where, module_name)
    found = getattr(holder, name, None)
    from_seqrun = inside(module_name, ("seqrun",)) and not inside(module_name, allowed)
    if not callable(found) or (from_seqrun and not isinstance(found, type)):
        kind = "class" if from_seqrun else "class or function"
        names = [n for n, value in vars(holder).items() if callable(value)]
        raise ConfigError(f"{where}: {module_name} has no {kind} {name}{nearest(name, names)}")
    defined_in = str(getattr(found, "__module__", None))
    if inside(module_name, own):
        if not inside(defined_in, own):
            raise ConfigError(
                f"{where}: {_on_the_list(parts[0])}, but this one is from {defined_in}"
            )
    elif not _is_listed(module_name, name, found, defined_in):
        raise ConfigError(f"{where}: {_on_the_list(parts[0])}")
    return found


def _on_the_list(root: str) -> str:
    return (
        "must name a class of seqrun, or a module, optimizer, transform, data set or builder of "
        f"the frameworks; allow_targets=[{root}] on the command line allows all of {root}"
    )


def inside(module: str, packages: Sequence[str]) -> bool:
    """Return True if a module is one of the packages, or lies within one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _is_listed(module: str, name: str, found: Any, defined_in: str) -> bool:
    """Return True if an object of a framework is on the list, and is defined where it is named."""
    if isinstance(found, type):
        bases = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
        for family in CLASSES:
            if inside(module, (family,)) and inside(defined_in, (family,)) and bases & {*BASES}:
                return True
        if inside(module, (TRANSFORMS,)) and inside(defined_in, (TRANSFORMS,)):
            return True
        return module == "torchvision.datasets" and name in DATASETS
    if f"{module}.{name}" == TIMM:
        return inside(defined_in, ("timm",))
    if inside(module, ("torchvision.models",)):
        return inside(defined_in, ("torchvision.models",)) and name in (
            importlib.import_module("torchvision.models").list_models()
        )
    return module in BUILDERS and inside(defined_in, BUILT_IN)


def check_call(where: str, target: str, node: Mapping[str, Any]) -> None:
    """Raise ConfigError if the arguments of a target on the list would load foreign code."""
    if target != TIMM:
        return
    args = list(node.get("_args_", ()))
    name = node.get("model_name", args[0] if args else "")
    if len(args) > 2 or any(key in node for key in TIMM_KEYS):
        raise ConfigError(f"{where}: must not be given {', '.join(TIMM_KEYS)}")
    if not re.fullmatch(r"[\w.]+", str(name)):
        raise ConfigError(f"{where}: {name}: must be the name of a model of timm's own")


def _holder(where: str, module_name: str) -> Any:
    """Import a module; return the class instead if the name is that of a class in one."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        outer, _, inner = module_name.rpartition(".")
        if missing == module_name and outer:
            found = getattr(_holder(where, outer), inner, None)
            if isinstance(found, type):
                return found
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(f"{where}: there is no module {missing}") from None
        raise ConfigError(f"{where}: the package {missing} is not installed") from None


# ---- Hydra's node, and what files may not set in it

NOT_BY_FILE = (
    "allow_targets",
    "hydra.hydra_logging",
    "hydra.job.env_copy",
    "hydra.job.env_set",
    "hydra.job_logging",
    "hydra.overrides",
    "hydra.runtime",
)
"""Keys that no file may set: they run commands without a `_target_`, or are what a user typed."""
SWEEPER_KEYS = (
    "params", "direction", "n_trials", "n_jobs", "sampler", "study_name", "max_batch_size",
    "max_failure_rate", "retry_diverged",
)  # fmt: skip
"""Keys of a sweeper that a file may set; others name functions to call, or pickles to read."""
LAUNCHER_KEYS = (
    "account", "array_parallelism", "comment", "constraint", "cpus_per_gpu", "cpus_per_task",
    "exclude", "folder", "gpus_per_node", "gpus_per_task", "gres", "max_num_timeout", "mem_gb",
    "mem_per_cpu", "mem_per_gpu", "n_jobs", "name", "nodes", "partition", "poll_seconds", "qos",
    "requeue", "retries", "signal_delay_s", "stderr_to_stdout", "submitit_folder",
    "tasks_per_node", "timeout_min",
)  # fmt: skip
"""Keys of a launcher that a file may set; others hold commands."""
COMMANDS = ("hydra.launcher.setup", "hydra.launcher.additional_parameters")
"""Keys of a launcher that may be several lines of text, once they are typed."""
OF_SEARCH = ("mode", "sweeper")
"""Keys of Hydra's node that a file of `FILE_GROUPS` may set."""
NOT_SEARCHED = ("hydra", "allow_targets", *FILE_GROUPS)
"""Keys for which a search must not choose values."""
PLUGIN = re.compile(
    r"(hydra\._internal\.core_plugins|hydra_plugins\.(seqrun|hydra_\w+))"
    r"(\.\w+)*\.[A-Z]\w*(Launcher|Sweeper)"
)
SAMPLER = re.compile(r"(optuna\.samplers|hydra_plugins\.seqrun\.\w+)\.[A-Z]\w*Sampler\w*")
CALLBACK = re.compile(r"hydra\.experimental\.callbacks\.[A-Z]\w*Callback")
REFERENCE = re.compile(r"\s*\$\{.*\}\s*", re.DOTALL)
"""Matches a value that is nothing but a reference, which may stand for a whole node."""
TEXT = re.compile(r"\$\{(oc\.env:[^${}]*|hydra\.[\w.]+)\}")
"""Matches the references that stand for text."""
NODES = re.compile(r"hydra(\.job|\.(callbacks|launcher|sweeper)\b.*)?")
"""Matches the keys of Hydra's node whose values must not be references to nodes."""


def check_search_path(name: str) -> None:
    """Raise ConfigError if the primary configuration adds a package to the search path.

    Looking for files there imports the package, so this must be known before Hydra composes.
    """
    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.is_config(name):
            try:
                config = source.load_config(name).config
                entries = OmegaConf.select(config, "hydra.searchpath") or []
            except (OSError, ValueError, YAMLError, OmegaConfBaseException):
                return  # Hydra reports it
            for entry in entries:
                if not str(entry).startswith("file://"):
                    raise ConfigError(
                        f"{_path(source, name)}: sets hydra.searchpath to {entry}: a file may add "
                        "only file://DIRECTORY; type others on the command line"
                    )
            return


def check_files(cfg: DictConfig, name: str, overrides: Sequence[str]) -> None:
    """Raise ConfigError if files or Hydra's node break the rule.

    Args:
        cfg: the composed experiment with Hydra's node.
        name: name of the primary configuration.
        overrides: what it was composed of.
    """
    allowed = [*(cfg.get("allow_targets") or []), *from_environment()]
    sets_sweep_dir = ""
    for path, group, content in _foreign(cfg, name, overrides):
        for key, value in _leaves(content):
            if not inside(key.partition("[")[0], ("hydra", "allow_targets")):
                continue
            if group in FILE_GROUPS and inside(key, ("hydra",)):
                if key.split(".")[1:2] and key.split(".")[1].split("[")[0] not in OF_SEARCH:
                    only = " and ".join(OF_SEARCH)
                    raise ConfigError(f"{path}: sets {key}; of hydra it may set only {only}")
            _check_key(path, key, value, allowed)
            if key == "hydra.sweep.dir":
                sets_sweep_dir = path
    node = OmegaConf.to_container(cfg.hydra, resolve=False)
    for key, value in _leaves({"hydra": node}):
        _check_target("", key, value, allowed)
        is_one_line = inside(key, ("hydra.launcher", "hydra.job.name", "hydra.sweep.dir"))
        if is_one_line and not inside(key.partition("[")[0], COMMANDS):
            _check_text(cfg, key)
    sampler = str(OmegaConf.select(cfg, "hydra.sweeper.sampler._target_"))
    if sets_sweep_dir and "CmaEs" in sampler:
        raise ConfigError(
            f"{sets_sweep_dir}: sets hydra.sweep.dir: the sampler unpickles what it finds in the "
            "study there; type hydra.sweep.dir on the command line"
        )


def _foreign(
    cfg: DictConfig, name: str, overrides: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (path, group, content at its place) of every chosen file that is not the program's."""
    loader = GlobalHydra.instance().config_loader()
    known = cfg.hydra.runtime.config_sources
    chosen = any(cfg.hydra.runtime.choices.get(group) for group in FILE_GROUPS)
    if not chosen and all(s.schema != "file" or Path(s.path).resolve() == CONF for s in known):
        return
    types = {source.scheme(): type(source) for source in loader.get_sources()}
    sources = [types[s.schema](s.provider, f"{s.schema}://{s.path}") for s in known]
    for default in loader.compute_defaults_list(name, list(overrides), RunMode.RUN).defaults:
        source = next((s for s in sources if s.is_config(default.config_path)), None)
        if source is None:
            continue
        place = os.path.normpath(default.config_path)
        group, package = place.split("/")[0], default.package or ""
        usual = package in ("", ".".join(place.split("/")[:-1]))
        if usual and group not in FILE_GROUPS and _is_program(source, place):
            continue
        content: Any = OmegaConf.to_container(source.load_config(default.config_path).config)
        path = _path(source, default.config_path)
        if not isinstance(content, dict):
            continue  # Hydra reports it
        _check_choices(path, group, content.pop("defaults", None))
        for part in reversed(package.split(".") if package else []):
            content = {part: content}
        yield path, group, content


def _is_program(source: ConfigSource, place: str) -> bool:
    """Return True if a file is seqrun's or Hydra's, or a copy of one of seqrun's."""
    if source.scheme() != "file":
        return source.scheme() == "structured" or source.path == "hydra.conf"
    own, found = CONF / f"{place}.yaml", Path(source.path, f"{place}.yaml")
    inner = not place.startswith("..") and own.is_file()
    return inner and own.read_bytes() == found.read_bytes()


def _path(source: ConfigSource, name: str) -> str:
    path = PurePosixPath(source.path, name)
    return str(path if path.suffix == ".yaml" else path.with_name(f"{path.name}.yaml"))


def _check_choices(path: str, group: str, defaults: Any) -> None:
    """Raise ConfigError if a file of `FILE_GROUPS` chooses more of Hydra's than a sweeper."""
    for entry in (defaults or []) if group in FILE_GROUPS else []:
        for key in entry if isinstance(entry, dict) else [str(entry)]:
            chosen = str(key).split()[-1].lstrip("/").split("@")[0]
            if inside(chosen.replace("/", "."), ("hydra",)) and "hydra/sweeper" not in chosen:
                only = " and ".join(OF_SEARCH)
                chosen = chosen.replace("/", ".")
                raise ConfigError(f"{path}: sets {chosen}; of hydra it may set only {only}")


def _check_key(path: str, key: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ConfigError if a file must not set a key of Hydra's node to a value."""
    if inside(key.partition("[")[0], NOT_BY_FILE):
        top = next(k for k in NOT_BY_FILE if inside(key.partition("[")[0], (k,)))
        remedy = f" or {VARIABLE}" if top == "allow_targets" else ""
        raise ConfigError(f"{path}: sets {key}, which only the command line{remedy} may: {top}=...")
    if NODES.fullmatch(key) and REFERENCE.fullmatch(str(value)) and not TEXT.fullmatch(str(value)):
        raise ConfigError(f"{path}: {key}: must not hold references ${{...}}")
    _check_target(f"{path}: sets ", key, value, allowed)
    for part, keys in (("hydra.sweeper", SWEEPER_KEYS), ("hydra.launcher", LAUNCHER_KEYS)):
        if key == part:
            raise ConfigError(f"{path}: {part}={value}: must be a node")
        own = key.removeprefix(f"{part}.").split(".")[0].split("[")[0]
        if inside(key, (part,)) and own not in (*keys, TARGET):
            raise ConfigError(
                f"{path}: sets {part}.{own}, which only the command line may; a file may set "
                f"{', '.join(keys)}"
            )
    params = "hydra.sweeper.params"
    if key in (params, "hydra.sweeper.sampler") and value is not None:
        raise ConfigError(f"{path}: {key}={value}: must be a node")
    if key.startswith(f"{params}."):
        name = key.removeprefix(f"{params}.").partition("[")[0]
        if not KEY.fullmatch(name):
            raise ConfigError(f"{path}: {params}.{name}: must be a key such as optimizer.lr")
        if name.lstrip("+~").split(".")[0] in NOT_SEARCHED:
            raise ConfigError(f"{path}: {params}.{name}: only the command line may set it")


def _check_target(where: str, key: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ConfigError if a `_target_` of Hydra's node is not on its list."""
    if key.split(".")[-1] != TARGET:
        return
    shown, sampler = f"{where}{key}={value}", "hydra.sweeper.sampler"
    if isinstance(value, str) and inside(value.rpartition(".")[0], allowed):
        return
    if key in (f"hydra.launcher.{TARGET}", f"hydra.sweeper.{TARGET}"):
        listed, kind = PLUGIN, "be a launcher or sweeper of Hydra's own or seqrun's"
    elif key == f"{sampler}.{TARGET}":
        listed, kind = SAMPLER, "be a sampler of Optuna's"
    elif re.fullmatch(rf"hydra\.callbacks\.\w+\.{TARGET}", key):
        listed, kind = CALLBACK, "be a class of hydra.experimental.callbacks"
    else:
        raise ConfigError(f"{shown}: must not be there: only a sampler may have one")
    if not listed.fullmatch(str(value)):
        root = str(value).split(".")[0]
        allow = f"; allow_targets=[{root}] on the command line allows it" * root.isidentifier()
        raise ConfigError(f"{shown}: must {kind}{allow}")


def _check_text(cfg: DictConfig, key: str) -> None:
    """Raise ConfigError if a value that goes into a script or a path has more than one line."""
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return  # known only when a job runs
    if isinstance(value, str) and not value.isprintable():
        raise ConfigError(f"{key}={value!r}: must be one line of text")


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every value that is no mapping, and of those within lists."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
        return
    yield key, node
    for place, value in enumerate(node if isinstance(node, list) else []):
        yield from _leaves(value, f"{key}[{place}]")

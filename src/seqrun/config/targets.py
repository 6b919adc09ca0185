"""Instantiate the class that a `_target_` names, from seqrun or an allowed package."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from seqrun.checks import ConfigError, must_be_one_of, nearest
from seqrun.config.secrets import names_secret

TARGET = "_target_"
INSTALL = {"torch": "pip install torch torchvision", "jax": "pip install jax flax optax"}
"""Backend (also the name of its framework's package) -> the command that installs it."""


def check_backend(backend: str) -> None:
    """Raise ConfigError unless `backend` exists and its framework is installed."""
    if backend not in INSTALL:
        raise ConfigError(f"backend={backend}: {must_be_one_of(INSTALL, backend)}")
    if importlib.util.find_spec(backend) is None:
        raise ConfigError(
            f"backend={backend}: the package {backend} is not installed: {INSTALL[backend]}"
        )


def make(
    config: Mapping[str, Any],
    key: str,
    base: type,
    *,
    provided: Sequence[str] = (),
) -> Any:
    """Instantiate the node at `key`; with `provided`, return a function of those arguments.

    Args:
        config: the experiment as plain data.
        key: "algo", "benchmark", ..., or "callbacks.<name>", "logger.<name>".
        base: class that the node's `_target_` must be derived from.
        provided: arguments that the caller will pass; the node must not have them.

    Raises:
        ConfigError: a `_target_` or an argument that is not allowed; the message names its key.
    """
    node = config
    for part in key.split("."):
        node = node[part]
    if not isinstance(node, Mapping) or TARGET not in node:
        raise ConfigError(f"{key}: must be a node with a {TARGET}, like those in conf/")
    _refuse_references(key, node)
    allowed = config["allow_targets"]
    found = find_class(key, node[TARGET], base, allowed)
    check_arguments(key, node, found, provided)
    for child_key, child in nested(key, node):
        check_arguments(child_key, child, find_class(child_key, child[TARGET], object, allowed))
    own = {name for name in node if name != TARGET}
    if not provided:
        return _with_prefix(key, own, lambda: instantiate(node, _convert_="all"))
    part = _with_prefix(key, own, lambda: instantiate(node, _convert_="all", _partial_=True))
    return lambda **given: _with_prefix(key, own, lambda: part(**given))


def _refuse_references(key: str, node: Any) -> None:
    """Raise ConfigError if resolved data hold a reference, which `instantiate` would resolve."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            _refuse_references(f"{key}.{name}", value)
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            _refuse_references(f"{key}[{place}]", value)
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{key}={node}: must not hold ${{ once its references are resolved")


def _with_prefix(prefix: str, own: set[str], call: Any) -> Any:
    """Run `call`; prefix the message of a ConfigError about one of the node's `own` keys."""
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


def find_class(key: str, target: Any, base: type, allow_targets: Sequence[str] = ()) -> type[Any]:
    """Return the class that `target` names.

    Args:
        key: the node's key in the experiment, for messages.
        target: dotted path of a class.
        base: the class that it must be derived from.
        allow_targets: packages besides seqrun that may hold it.

    Raises:
        ConfigError: it does not exist, is not a class, is named or defined outside the allowed
            packages, or is not derived from `base`.
    """
    where = f"{key}.{TARGET}={target}"
    packages = ("seqrun", *allow_targets)
    allowed = f"must name a class of {' or '.join(packages)} (see allow_targets)"
    module_name, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if not module_name or not name.isidentifier() or not _inside(module_name, packages):
        raise ConfigError(f"{where}: {allowed}")
    module = _import(where, module_name)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [n for n, c in vars(module).items() if isinstance(c, type)]
        raise ConfigError(f"{where}: {module_name} has no class {name}{nearest(name, classes)}")
    if not _inside(found.__module__, packages):
        raise ConfigError(f"{where}: {allowed}, but this one is from {found.__module__}")
    if not issubclass(found, base):
        raise ConfigError(f"{where}: must be a {base.__name__}")
    return found


def check_arguments(
    key: str, node: Mapping[str, Any], found: type[Any], provided: Collection[str] = ()
) -> None:
    """Raise ConfigError unless the node's keys are arguments of `found` and none is missing.

    Args:
        key: the node's key in the experiment, for messages.
        node: `_target_` and arguments.
        found: the class that `_target_` names.
        provided: arguments that the runner passes; the node must not have them.
    """
    parameters = inspect.signature(found).parameters
    own = {name: p for name, p in parameters.items() if name not in provided}
    has = f"{key} ({found.__name__}) has {', '.join(own) or 'no keys'}"
    for name, value in node.items():
        if name not in own and name != TARGET:
            shown = "***" if names_secret(name) else value
            raise ConfigError(f"{key}.{name}={shown}: no such key; {has}{nearest(name, own)}")
    for name, parameter in own.items():
        if parameter.default is parameter.empty and name not in node:
            raise ConfigError(f"{key}.{name}: must be given; {has}")


def nested(key: str, node: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (key, node) of every node below `node` that has a `_target_`."""
    children: list[tuple[str, Any]] = []
    if isinstance(node, Mapping):
        children = [(f"{key}.{name}", value) for name, value in node.items()]
    elif isinstance(node, (list, tuple)):
        children = [(f"{key}[{i}]", value) for i, value in enumerate(node)]
    found = []
    for child_key, child in children:
        if isinstance(child, Mapping) and TARGET in child:
            found.append((child_key, child))
        found += nested(child_key, child)
    return found


def _inside(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _import(where: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(f"{where}: there is no module {missing}") from None
        raise ConfigError(f"{where}: the package {missing} is not installed") from None

"""Instantiate what a `_target_` names, if it may be named."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from seqrun.checks import ConfigError, must_be_one_of, nearest
from seqrun.config.secrets import names_secret
from seqrun.config.trust import TARGET, check_call, find

HYDRA_KEYS = (TARGET, "_args_", "_convert_", "_partial_", "_recursive_")
"""Keys of a node that are Hydra's, not arguments."""
INSTALL = {
    "torch": "pip install torch torchvision, or seqrun[torch]",
    "jax": "pip install jax flax optax, or seqrun[jax]",
}
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
    found = find_target(key, node[TARGET], object if key == "optimizer" else base, allowed)
    if key == "optimizer" and _is_foreign(node[TARGET], found, base):
        return _foreign_optimizer(config, node, found)
    check_arguments(key, node, found, provided)
    for child_key, child in nested(key, node):
        child_found = find_target(child_key, child[TARGET], object, allowed)
        check_arguments(child_key, child, child_found)
        check_call(child_key, child[TARGET], child)
    own = {name for name in node if name != TARGET}
    options: dict[str, Any] = {"_convert_": node.get("_convert_", "all")}
    if not provided:
        part = _with_prefix(key, own, lambda: instantiate(node, **options, **trusted(node)))
        if not isinstance(part, base):
            kind = f"must give a {base.__name__}, not a {type(part).__name__}"
            raise ConfigError(f"{key}.{TARGET}={node[TARGET]}: {kind}")
        return part
    options |= trusted(node)
    part = _with_prefix(key, own, lambda: instantiate(node, **options, _partial_=True))
    return lambda **given: _with_prefix(key, own, lambda: part(**given))


def _is_foreign(target: str, found: Any, base: type) -> bool:
    """Return True if an optimizer's target is not one of ours, nor a function that makes one."""
    if isinstance(found, type):
        return not issubclass(found, base)
    return target.startswith("optax.") or "learning_rate" in inspect.signature(found).parameters


def _foreign_optimizer(config: Mapping[str, Any], node: Mapping[str, Any], found: Any) -> Any:
    """Return an optimizer of torch.optim or optax, or one that a user's class or function makes.

    Raises:
        ConfigError: it is none of the backend's, or an argument is not allowed.
    """
    target, backend = node[TARGET], config["backend"]
    where, rate = f"optimizer.{TARGET}={target}", "lr"
    if backend == "torch":
        bases = [f"{base.__module__}.{base.__qualname__}" for base in getattr(found, "__mro__", ())]
        if "torch.optim.optimizer.Optimizer" not in bases:
            raise ConfigError(f"{where}: must be a torch.optim.Optimizer with backend=torch")
    elif target.split(".")[0] == "torch" or isinstance(found, type):
        raise ConfigError(f"{where}: must be a function of optax with backend=jax")
    else:
        rate = "learning_rate"
    parameters = inspect.signature(found).parameters
    if rate not in parameters:
        raise ConfigError(f"{where}: has no {rate}, which optimizer.lr would set")
    arguments = {name: value for name, value in node.items() if name != "lr"}
    if rate != "lr" and rate in arguments:
        raise ConfigError(f"optimizer.{rate}={arguments[rate]}: is optimizer.lr here")
    lr = node.get("lr", parameters[rate].default)
    if lr is inspect.Parameter.empty:
        raise ConfigError(f"optimizer.lr: must be given with {where}")
    check_arguments("optimizer", arguments, found, provided=["params", rate])
    for key, child in nested("optimizer", arguments):
        check_arguments(
            key, child, find_target(key, child[TARGET], object, config["allow_targets"])
        )
        check_call(key, child[TARGET], child)
    options = {"_convert_": "all", "_partial_": True, **trusted(arguments)}
    made = _with_prefix("optimizer", {*arguments}, lambda: instantiate(arguments, **options))
    module = importlib.import_module(f"seqrun.optimizers.foreign.{backend}")
    return _with_prefix(
        "optimizer", {"lr"}, lambda: module.Optimizer(lr=lr, make=made, target=target)
    )


def trusted(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which Hydra 1.4 lets `instantiate` call targets that were checked."""
    if "_execution_whitelist_" not in inspect.signature(instantiate).parameters:
        return {}
    names = [str(each[TARGET]) for _, each in [("", node), *nested("", node)]]
    found = map(get_object, names)  # Hydra wants to know where they are defined, too
    return {"_execution_whitelist_": names + [f"{x.__module__}.{x.__qualname__}" for x in found]}


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


def find_target(
    key: str, target: Any, base: type = object, allow_targets: Sequence[str] = ()
) -> Any:
    """Return the class or function that a `_target_` names.

    Args:
        key: the node's key in the experiment, for messages.
        target: dotted path.
        base: a class must be derived from it.
        allow_targets: packages of which anything may be named.

    Raises:
        ConfigError: it is not on the list (see `trust.find`), or not derived from `base`.
    """
    where = f"{key}.{TARGET}={target}"
    found = find(where, target, allow_targets)
    if isinstance(found, type) and not issubclass(found, base):
        raise ConfigError(f"{where}: must be a {base.__name__}")
    return found


def find_class(key: str, target: Any, base: type, allow_targets: Sequence[str] = ()) -> type[Any]:
    """Return the class that a `_target_` names, as `find_target`; a function is refused."""
    found = find_target(key, target, base, allow_targets)
    if not isinstance(found, type):
        raise ConfigError(f"{key}.{TARGET}={target}: must be a class, derived from {base.__name__}")
    return found


def check_arguments(
    key: str, node: Mapping[str, Any], found: Any, provided: Collection[str] = ()
) -> None:
    """Raise ConfigError unless a node's keys are arguments of its target and none is missing.

    Args:
        key: the node's key in the experiment, for messages.
        node: `_target_` and arguments.
        found: the class or function that `_target_` names.
        provided: arguments that the runner passes; the node must not have them.
    """
    try:
        parameters = inspect.signature(found).parameters
    except ValueError:  # of C: it says itself what it lacks
        return
    own = {name: p for name, p in parameters.items() if name not in provided}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in own.values())
    own = {n: p for n, p in own.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    has = f"{key} ({found.__name__}) has {', '.join(own) or 'no keys'}"
    for name, value in node.items():
        if name not in (*own, *HYDRA_KEYS) and not takes_any:
            shown = "***" if names_secret(name) else value
            raise ConfigError(f"{key}.{name}={shown}: no such key; {has}{nearest(name, own)}")
    positional = [n for n, p in own.items() if p.kind is not p.KEYWORD_ONLY]
    given = {*node, *positional[: len(node.get("_args_", ()))]}
    for name, parameter in own.items():
        is_needed = parameter.default is parameter.empty and not node.get("_partial_")
        if is_needed and name not in given:
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

"""Secrets: the keys and variables that hold them, and how they are masked.

A configuration may come from an untrusted source, and the values that it reads appear in records
and trackers. A token from the environment must not appear there, under whatever key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from seqrun.checks import ConfigError

SECRETS = ("api_key", "apikey", "password", "secret", "token")
"""Endings of keys that hold a secret."""
VARIABLES = re.compile(
    r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?)(_|\d|$)", re.IGNORECASE
)
"""Matches the names of environment variables whose values are masked wherever they appear."""
SHORTEST = 6
"""Characters of the shortest value that is masked: "1" and "true" are no secrets."""
FROM_VARIABLE = re.compile(r"\$\{oc\.env:\w+\}")
_NO_DEFAULT = "_NO_DEFAULT_"


def without_secrets(value: Any) -> Any:
    """Return plain data in which "***" replaces secrets.

    These are the values of keys that name one, and what variables that name one hold.
    """
    if isinstance(value, str):
        return _masked(value, _held())
    return _without(value, _held())


def _held() -> list[str]:
    """Return the values of the environment's variables that name a secret."""
    held = {value for name, value in os.environ.items() if VARIABLES.search(name)}
    return sorted((value for value in held if len(value) >= SHORTEST), key=len, reverse=True)


def _masked(text: str, held: list[str]) -> str:
    for value in held:
        text = text.replace(value, "***")
    return text


def _without(value: Any, held: list[str]) -> Any:
    if isinstance(value, str):
        return _masked(value, held)
    if isinstance(value, Mapping):
        return {
            key: "***" if item and names_secret(key) else _without(item, held)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without(item, held) for item in value]
    return value


def names_secret(key: str) -> bool:
    """Return True if the key names a secret."""
    return any(str(key).lower().endswith(secret) for secret in SECRETS)


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


def read_variable(name: str, default: Any = _NO_DEFAULT) -> Any:
    """Return an environment variable, or `default`, as `${oc.env:name,default}` does.

    Raises:
        ConfigError: it is not set and has no default.
    """
    value = os.environ.get(name)
    if value is not None:
        return value
    if isinstance(default, str) and default == _NO_DEFAULT:
        raise ConfigError(f"oc.env:{name}: is not set, and no default is given")
    return None if default is None else str(default)

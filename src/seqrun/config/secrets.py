"""Secrets: the keys that hold them, how they are masked, and the variables that may be read.

A configuration may come from an untrusted source, and the values that it reads appear in run
names, records and trackers. A token from the environment must not appear there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from seqrun.checks import ConfigError

SECRETS = ("api_key", "apikey", "password", "secret", "token")
"""Endings of keys that hold a secret."""
READABLE = ("SEQRUN_*", "SLURM_*", "CUDA_VISIBLE_DEVICES", "HOME", "USER", "TMPDIR", "HOSTNAME")
"""Environment variables that `${oc.env:...}` may read; name your own SEQRUN_<NAME>."""
FROM_VARIABLE = re.compile(r"\$\{oc\.env:SEQRUN_\w+\}")
_NO_DEFAULT = "_NO_DEFAULT_"


def without_secrets(value: Any) -> Any:
    """Return plain data in which "***" replaces the value of every key that names a secret."""
    if isinstance(value, Mapping):
        return {
            key: "***" if item and names_secret(key) else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
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
        ConfigError: the variable is not `READABLE`, or it is not set and has no default.
    """
    if not any(fnmatchcase(name, pattern) for pattern in READABLE):
        raise ConfigError(f"oc.env:{name}: must be one of {', '.join(READABLE)}")
    value = os.environ.get(name)
    if value is not None:
        return value
    if isinstance(default, str) and default == _NO_DEFAULT:
        raise ConfigError(f"oc.env:{name}: is not set, and no default is given")
    return None if default is None else str(default)

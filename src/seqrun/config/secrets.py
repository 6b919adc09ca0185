"""Secrets: the keys that hold them, how they are masked, and the variables that may be read.

A configuration may come from an untrusted source, and the values that it reads appear in run
names, records and trackers. A token from the environment must not appear there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from seqrun.checks import ConfigError

SECRETS = ("api_key", "apikey", "password", "secret", "token")
"""Endings of keys that hold a secret."""
READABLE = ("SEQRUN_*", "SLURM_*", "CUDA_VISIBLE_DEVICES", "HOME", "USER", "TMPDIR", "HOSTNAME")
"""Environment variables that `${oc.env:...}` may read; name your own SEQRUN_<NAME>."""
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

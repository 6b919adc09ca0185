"""Which environment variables a configuration may read.

A configuration may come from a stranger, and what it reads shows up in run names, records and
trackers: a token in the environment must not.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import Any

from seqrun.checks import ConfigError

READABLE = ("SEQRUN_*", "SLURM_*", "CUDA_VISIBLE_DEVICES", "HOME", "USER", "TMPDIR", "HOSTNAME")
"""Names, * standing for anything; name a variable SEQRUN_... to pass it to a configuration."""
_NOTHING = "_NOTHING_"


def read_variable(name: str, default: Any = _NOTHING) -> Any:
    """Return an environment variable, or `default`, as `${oc.env:name,default}` does.

    Raises:
        ConfigError: a variable that is not `READABLE`, or one that is not set and has no default.
    """
    if not any(fnmatchcase(name, pattern) for pattern in READABLE):
        raise ConfigError(f"oc.env:{name}: must be one of {', '.join(READABLE)}")
    value = os.environ.get(name)
    if value is not None:
        return value
    if isinstance(default, str) and default == _NOTHING:
        raise ConfigError(f"oc.env:{name}: is not set, and no default is given")
    return None if default is None else str(default)

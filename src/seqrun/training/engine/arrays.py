"""Algorithm and optimizer state as named arrays: one naming for both frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten_state(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return "group/field/name" -> array for nested dictionaries and NamedTuples of arrays.

    None stands for an absent field and is left out.
    """
    named: dict[str, Any] = {}
    for name, value in groups.items():
        if value is None:
            continue
        if hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, Mapping):
            inner = flatten_state(value)
            named |= {f"{name}/{key}": array for key, array in inner.items()}
        else:
            named[name] = value
    return named


def unflatten_state(like: Any, prefix: str, named: Mapping[str, Any]) -> Any:
    """Return a structure such as `like`, filled from the arrays under `prefix`."""
    if like is None:
        return None
    if hasattr(like, "_asdict"):
        fields = like._asdict()
        values = {f: unflatten_state(v, f"{prefix}/{f}", named) for f, v in fields.items()}
        return type(like)(**values)
    if isinstance(like, Mapping):
        return {k: unflatten_state(v, f"{prefix}/{k}", named) for k, v in like.items()}
    return named[prefix]

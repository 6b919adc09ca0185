"""Algorithm and optimizer state as named arrays, with the same names on both frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten_state(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return "group/field/name" -> array of nested dictionaries and NamedTuples; skip None."""
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
    """Return a structure like `like`, filled with the arrays whose names start with `prefix`."""
    if like is None:
        return None
    if hasattr(like, "_asdict"):
        fields = like._asdict()
        values = {f: unflatten_state(v, f"{prefix}/{f}", named) for f, v in fields.items()}
        return type(like)(**values)
    if isinstance(like, Mapping):
        return {k: unflatten_state(v, f"{prefix}/{k}", named) for k, v in like.items()}
    return named[prefix]

"""Checks of constructor arguments: one message naming the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any


class ConfigError(ValueError):
    """An experiment that cannot run; the message names the key, the value and what is allowed."""


def at_least(name: str, value: Any, low: float, *, strictly: bool = False) -> None:
    """Raise ConfigError unless `value` is a finite number >= `low` (> `low` if `strictly`)."""
    relation = ">" if strictly else ">="
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < low or (strictly and value == low):
        raise ConfigError(f"{name}={value!r}: must be a number {relation} {low:g}")


def whole(name: str, value: Any, low: int) -> None:
    """Raise ConfigError unless `value` is an integer >= `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name}={value!r}: must be an integer >= {low}")


def within(name: str, value: Any, low: float, high: float, *, open_high: bool = False) -> None:
    """Raise ConfigError unless `low` <= `value` <= `high` (< `high` if `open_high`)."""
    closing = ")" if open_high else "]"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (open_high and value == high):
        raise ConfigError(f"{name}={value!r}: must be a number in [{low:g}, {high:g}{closing}")


def boolean(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: must be true or false")


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`; name the nearest match."""
    if value not in allowed:
        listed = ", ".join(str(a) for a in allowed)
        raise ConfigError(f"{name}={value!r}: must be one of {listed}{nearest(value, allowed)}")


def nearest(word: Any, allowed: Iterable[Any]) -> str:
    """Return ' (did you mean X?)' for the closest of `allowed`, or '' if none is close."""
    close = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1)
    return f" (did you mean {close[0]}?)" if close else ""

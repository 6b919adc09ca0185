"""Checks of arguments, and how parts declare changes of their numbers or options."""

from __future__ import annotations

import difflib
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any

BACKENDS = ("torch", "jax")
BAD_INPUT = 2
"""Exit code of a command with invalid input."""

Numerics = int | Callable[[Mapping[str, Any]], int]
"""Version of a part's numerical results, from 1; raise it when they change on purpose.

A version above 1 enters the config hash and the records, so that no run with the old numbers is
mistaken for one with the new. If the numbers change only for some values of the options, this is a
static method that maps the part's options (name -> value) to the version. An algorithm's options
include its `benchmark`, `backbone`, `optimizer` and `training`, constructed.
"""


class ConfigError(ValueError):
    """An invalid experiment; the message names the key, the value and what is allowed."""


def added(
    default: Any = MISSING,
    *,
    default_factory: Callable[[], Any] | Any = MISSING,
    before: Any = MISSING,
) -> Any:
    """Return the dataclass field of an option that did not exist in an earlier version.

    Such an option is left out of the config hash while it has the value that gives the behaviour
    from before it existed, so that an old command still finds its old run. Use it for every option
    that is added to a part, to TrainingOptions or to the schema.

    With `before`, the default changes the numbers. Then the option is left out at that value, which
    finds the old run, and at its default only where a `numerics` that depends on the options is 1.

    Args:
        default: the default, which is that value unless `before` is given.
        default_factory: function that returns the default, if that is a list or a dict.
        before: the value that gives this behaviour, if the default does not.
    """
    metadata = {"added": True} if before is MISSING else {"added": True, "before": before}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def changed(default: Any) -> Any:
    """Return the dataclass field of an option of a part that had another default before.

    A configuration that does not name the option is hashed with the default of today, so that it
    does not find its old run; one that names the old default does.
    """
    return field(default=default, metadata={"changed": True})


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


def whole_per_task(name: str, value: Any, low: int) -> None:
    """Raise ConfigError unless `value` is an integer >= `low` or a list of them, one per task."""
    if isinstance(value, int):
        whole(name, value, low)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for entry in value:
            whole(name, entry, low)
    else:
        raise ConfigError(
            f"{name}={value!r}: must be an integer >= {low} or a list with one per task"
        )


def whole_entries(name: str, values: Sequence[Any], low: int) -> None:
    """Raise ConfigError unless all entries of a list are integers >= `low`."""
    for number, value in enumerate(values, 1):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigError(
                f"{name}={list(values)}: must have integers >= {low}; entry {number} is {value!r}"
            )


def one_per_task(name: str, value: Any, num_tasks: int) -> None:
    """Raise ConfigError if `value` is a list whose length is not the number of tasks."""
    if not isinstance(value, int) and len(value) != num_tasks:
        raise ConfigError(
            f"{name}={list(value)}: has {len(value)} entries, must have "
            f"benchmark.num_tasks={num_tasks}"
        )


def of_task(value: Any, task: int) -> int:
    """Return the value for `task` (1-based): `value` itself, or its entry if it is a list."""
    return value if isinstance(value, int) else value[task - 1]


def within(
    name: str,
    value: Any,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise ConfigError unless `low` <= `value` <= `high`, without `low` or `high` if open."""
    opening, closing = "(" if open_low else "[", ")" if open_high else "]"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    excluded = [end for end, is_open in ((low, open_low), (high, open_high)) if is_open]
    if not number or not low <= value <= high or value in excluded:
        allowed = f"{opening}{low:g}, {high:g}{closing}"
        raise ConfigError(f"{name}={value!r}: must be a number in {allowed}")


def writable(name: str, directory: str | Path) -> None:
    """Raise ConfigError unless files can be written to `directory`; it is not created."""
    if not isinstance(directory, (str, Path)):
        raise ConfigError(f"{name}={directory!r}: must be a directory")
    path = Path(directory).expanduser().absolute()
    existing = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{name}={directory}: must be a directory that can be written to ({reason})"
        ) from None


def finite(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is a finite number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r}: must be a finite number")


def finite_list(name: str, value: Any, length: int, meaning: str) -> None:
    """Raise ConfigError unless `value` is None or a list of finite numbers.

    Args:
        name: name of the key.
        value: value of the key.
        length: required number of entries.
        meaning: of the entries, in two or three words, for the message.
    """
    if value is None:
        return
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not listed or len(value) != length:
        raise ConfigError(
            f"{name}={value!r}: must be null or a list of {length} numbers, {meaning}"
        )
    for element in value:
        finite(name, element)


def boolean(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: must be true or false")


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`; suggest the closest match."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: {must_be_one_of(allowed, value)}")


def must_be_one_of(allowed: Iterable[Any], word: Any) -> str:
    """Return 'must be one of X, Y', and the one that was probably meant instead of `word`."""
    allowed = [str(a) for a in allowed]
    return f"must be one of {', '.join(allowed)}{nearest(word, allowed)}"


ALSO_CALLED = {"gpu": "cuda", "pytorch": "torch", "flax": "jax", "learning_rate": "lr"}
"""Words that users know from elsewhere -> the word here."""


def nearest(word: Any, allowed: Iterable[Any]) -> str:
    """Return ' (did you mean X?)' for the closest of `allowed`, or '' if none is close."""
    by_case = {str(a).lower(): str(a) for a in allowed}
    wanted = ALSO_CALLED.get(str(word).lower(), str(word).lower())
    close = difflib.get_close_matches(wanted, by_case, n=1)
    return f" (did you mean {by_case[close[0]]}?)" if close else ""

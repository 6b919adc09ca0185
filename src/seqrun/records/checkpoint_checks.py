"""Check that a checkpoint's content can be from this run: names, types, shapes, ranges."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

RECORD, MEMORY = "record/", "memory/"
"""Prefixes of the names of the matrices and of the arrays of an algorithm's memory."""
WEIGHTS = ("params/", "stats/")
"""Prefixes of the names of the network's parameters and statistics."""
CARRIED = (*WEIGHTS, "optimizer/", "state/")
"""Where everything stands that training steps change."""
LARGEST_INT, LARGEST_FLOAT = 2**63 - 1, sys.float_info.max

Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_INT)]
Finite = Annotated[float, msgspec.Meta(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=LARGEST_FLOAT)]


class CheckpointError(ValueError):
    """A checkpoint that is damaged or not of this run; the message says where and what."""


class Counters(msgspec.Struct, forbid_unknown_fields=True):
    """`Progress.counters` of a run that has done a step."""

    task: Count
    epoch: Count
    task_is_done: bool
    global_step: Count
    epoch_first_step: Count
    epoch_loss_sum: Finite
    epoch_samples: NotNegative
    samples_seen: Count
    gradient_steps: Count
    memory_bytes: Count
    task_losses: list[Finite]
    final_loss: Finite
    timing: dict[str, NotNegative]


class State(msgspec.Struct):
    """A run's state in state.json; callbacks and loggers check their own entries."""

    counters: Counters
    callbacks: dict[str, dict[str, Any]]
    loggers: dict[str, dict[str, Any]]
    num_threads: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_INT)] | None = None


def check_state(state: Mapping[str, Any], where: Path) -> None:
    """Raise CheckpointError, which names the file, unless `state` has the form of `State`."""
    try:
        msgspec.convert(state, State)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{where}: {error}") from None


# ---- arrays


def not_finite(arrays: Mapping[str, np.ndarray], *, besides: tuple[str, ...]) -> list[str]:
    """Return the names of arrays that are not finite, except those with a prefix in `besides`."""
    return [
        name
        for name, array in arrays.items()
        if array.dtype.kind == "f" and not name.startswith(besides) and not np.isfinite(array).all()
    ]


def weights_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return canonical name -> array of the parameters and statistics among a run's arrays."""
    return {
        name.removeprefix(group): array
        for group in WEIGHTS
        for name, array in arrays.items()
        if name.startswith(group)
    }


def check_same_arrays(
    stored: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], *, foreign: str
) -> None:
    """Raise CheckpointError unless names, shapes and types agree.

    Args:
        stored, own: the arrays that a checkpoint has, and those that it must have.
        foreign: message about a name that is not in `own`.
    """
    for name in sorted(set(stored) ^ set(own)):
        known = foreign if name in stored else "is missing"
        raise CheckpointError(f"checkpoint: {name}: {known}")
    for name, array in own.items():
        require_like(name, stored[name], array)


def check_memory(memory: Mapping[str, np.ndarray], algorithm: Any, capacity: int) -> None:
    """Raise CheckpointError unless stored samples can be from an algorithm's stream.

    Args:
        memory: "seen", and "x", "y", "t" unless nothing is stored.
        algorithm: an algorithm whose data are prepared.
        capacity: maximum number of stored samples.
    """
    if set(memory) not in ({"seen"}, {"seen", "x", "y", "t"}):
        raise CheckpointError("checkpoint: memory: must have seen, and x, y, t if it has samples")
    most = {"seen": LARGEST_INT, "y": algorithm.benchmark.num_classes - 1}
    most["t"] = algorithm.num_tasks - 1
    for name in memory.keys() & most:
        check_integers(f"checkpoint: memory/{name}", memory[name], int(name != "seen"), most[name])
    if "x" not in memory:
        return
    x, y, t = (memory[name] for name in ("x", "y", "t"))
    shape = algorithm.benchmark.input_shape
    if (
        len(y) > capacity
        or t.shape != y.shape
        or x.shape != (len(y), *shape)
        or x.dtype != np.uint8
    ):
        raise CheckpointError(
            f"checkpoint: memory: {x.dtype} x{x.shape}, y{y.shape}, t{t.shape}: must be at most "
            f"{capacity} samples of uint8 {shape}"
        )


def require_like(name: str, stored: np.ndarray, own: np.ndarray) -> None:
    """Raise CheckpointError unless two arrays have the same shape and type."""
    if stored.shape != own.shape or stored.dtype != own.dtype:
        raise CheckpointError(
            f"checkpoint: {name}: is {stored.dtype}{list(stored.shape)}, "
            f"must be {own.dtype}{list(own.shape)}"
        )


# ---- single values in the states of callbacks and loggers


def check_keys(state: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise CheckpointError unless `state` has these entries and no others."""
    if set(state) != set(names):
        raise CheckpointError(f"must have {', '.join(names)}, not {reprlib.repr(list(state))}")


def check_whole(name: str, value: Any, most: int = LARGEST_INT) -> None:
    """Raise CheckpointError unless `value` is an integer in 0..`most`."""
    if type(value) is not int or not 0 <= value <= most:
        raise CheckpointError(f"{name}={reprlib.repr(value)}: must be an integer in 0..{most}")


def check_number(
    name: str, value: Any, low: float = -LARGEST_FLOAT, high: float = LARGEST_FLOAT
) -> None:
    """Raise CheckpointError unless `value` is a number in [`low`, `high`]: not NaN."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise CheckpointError(
            f"{name}={reprlib.repr(value)}: must be a number in [{low:g}, {high:g}]"
        )


def check_digits(name: str, value: Any, count: int) -> None:
    """Raise CheckpointError unless `value` is a string of `count` hexadecimal digits."""
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{count}}}", value):
        raise CheckpointError(f"{name}={reprlib.repr(value)}: must have {count} hexadecimal digits")


def check_integers(name: str, values: Any, ndim: int, most: int) -> None:
    """Raise CheckpointError unless `values` is an array of integers in 0..`most`."""
    fit = isinstance(values, np.ndarray) and values.ndim == ndim and values.dtype.kind in "iu"
    if not fit or (values.size and not 0 <= values.min() <= values.max() <= most):
        raise CheckpointError(f"{name}: must be an array of {ndim} axes, integers in 0..{most}")


def check_like(name: str, stored: Any, own: np.ndarray) -> None:
    """Raise CheckpointError unless `stored` has the shape and type of `own` and is finite."""
    if not isinstance(stored, np.ndarray):
        raise CheckpointError(f"{name}: is missing or not an array")
    require_like(name, stored, own)
    if not np.isfinite(stored).all():
        raise CheckpointError(f"{name}: is not finite")

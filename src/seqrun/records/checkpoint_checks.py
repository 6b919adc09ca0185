"""Whether what a checkpoint holds can be a run's own: types, ranges, shapes."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqrun.records.progress import COUNTERS

WHOLE = (
    "task",
    "epoch",
    "global_step",
    "epoch_first_step",
    "samples_seen",
    "gradient_steps",
    "memory_bytes",
)
RECORD, MEMORY = "record/", "memory/"
"""Where the matrices and an algorithm's memory stand among the arrays."""
WEIGHTS = ("params/", "stats/")
"""Where the network stands among them."""


LARGEST = 2**63 - 1


class CheckpointError(ValueError):
    """A checkpoint that is damaged or not of this run; the message says where and what."""


def not_finite(arrays: Mapping[str, np.ndarray], *, besides: tuple[str, ...]) -> list[str]:
    """Return the names of arrays with NaN or infinite numbers, but for those with a prefix."""
    return [
        name
        for name, array in arrays.items()
        if array.dtype.kind == "f" and not name.startswith(besides) and not np.isfinite(array).all()
    ]


def check_state(state: Mapping[str, Any], where: Path) -> None:
    """Raise CheckpointError unless counters and what parts keep have the types they must have.

    Args:
        state: "counters", "callbacks", "loggers".
        where: file, for messages.
    """
    try:
        _check_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _check_state(state: Mapping[str, Any]) -> None:
    counters = state["counters"]
    if not isinstance(counters, dict) or sorted(counters) != sorted(COUNTERS):
        raise CheckpointError(f"counters must have {', '.join(COUNTERS)}")
    for name in WHOLE:
        check_whole(f"counters.{name}", counters[name])
    for name in ("epoch_loss_sum", "epoch_samples", "final_loss"):
        check_number(f"counters.{name}", counters[name], 0.0 if name == "epoch_samples" else None)
    for name, kind in (("task_is_done", bool), ("task_losses", list), ("timing", dict)):
        if not isinstance(counters[name], kind):
            raise CheckpointError(f"counters.{name}: must be of type {kind.__name__}")
    for value in counters["task_losses"]:
        check_number("counters.task_losses", value)
    for name, value in counters["timing"].items():
        check_number(f"counters.timing.{name}", value, 0.0)
    for name in ("callbacks", "loggers"):
        named = isinstance(state[name], dict)
        if not named or not all(isinstance(kept, dict) for kept in state[name].values()):
            raise CheckpointError(f"{name} must be an object of objects")


def weights_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return canonical name -> array of the parameters and statistics among a run's arrays."""
    return {
        name.removeprefix(group): array
        for group in WEIGHTS
        for name, array in arrays.items()
        if name.startswith(group)
    }


def check_weights(weights: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]) -> None:
    """Raise CheckpointError unless parameters and statistics are like a network's `own`."""
    check_same_arrays(weights, own, foreign="is not in this network")


def check_same_arrays(
    stored: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], *, foreign: str
) -> None:
    """Raise CheckpointError unless names, shapes and types agree.

    Args:
        stored, own: what a checkpoint has, and what it must have.
        foreign: what is said of a name that is not among `own`.
    """
    for name in sorted(set(stored) ^ set(own)):
        known = foreign if name in stored else "is missing"
        raise CheckpointError(f"checkpoint: {name}: {known}")
    for name, array in own.items():
        require_like(name, stored[name], array)


def check_memory(
    memory: Mapping[str, np.ndarray],
    capacity: int,
    *,
    input_shape: tuple[int, ...] | None,
    num_classes: int | None,
    num_tasks: int,
) -> None:
    """Raise CheckpointError unless stored samples can be of a stream.

    Args:
        memory: "seen", and "x", "y", "t" unless nothing is stored.
        capacity: samples that may be stored.
        input_shape, num_classes, num_tasks: of the stream, whose data are prepared.
    """
    assert input_shape is not None and num_classes is not None
    if set(memory) not in ({"seen"}, {"seen", "x", "y", "t"}):
        raise CheckpointError("checkpoint: memory: must have seen, and x, y, t if it has samples")
    seen = memory["seen"]
    if seen.shape != () or seen.dtype.kind != "i" or seen < 0:
        raise CheckpointError("checkpoint: memory/seen: must be an integer >= 0")
    if "x" not in memory:
        return
    x, y, t = (memory[name] for name in ("x", "y", "t"))
    fit = x.shape == (len(y), *input_shape) and y.ndim == 1 and t.shape == y.shape
    if not fit or x.dtype != np.uint8 or len(y) > capacity:
        raise CheckpointError(
            f"checkpoint: memory: {x.dtype} x{x.shape}, y{y.shape}, t{t.shape}: must be at most "
            f"{capacity} samples of uint8 {input_shape}"
        )
    for name, labels, most in (("y", y, num_classes), ("t", t, num_tasks)):
        integers = labels.dtype.kind in "iu"
        if not integers or (len(labels) and not 0 <= labels.min() <= labels.max() < most):
            raise CheckpointError(f"checkpoint: memory/{name}: must be integers in 0..{most - 1}")


def require_like(name: str, stored: np.ndarray, own: np.ndarray) -> None:
    """Raise CheckpointError unless two arrays have the same shape and type."""
    if stored.shape != own.shape or stored.dtype != own.dtype:
        raise CheckpointError(
            f"checkpoint: {name}: is {stored.dtype}{list(stored.shape)}, "
            f"must be {own.dtype}{list(own.shape)}"
        )


# ---- single values, for what callbacks and loggers keep too


def check_keys(state: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise CheckpointError unless `state` has these entries and no others."""
    if set(state) != set(names):
        raise CheckpointError(f"must have {', '.join(names)}, not {reprlib.repr(list(state))}")


def check_whole(name: str, value: Any, most: int = LARGEST) -> None:
    """Raise CheckpointError unless `value` is an integer in 0..`most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        allowed = ">= 0" if most == LARGEST else f"in 0..{most}"
        raise CheckpointError(f"{name}={reprlib.repr(value)}: must be an integer {allowed}")


def check_number(
    name: str, value: Any, low: float | None = None, high: float | None = None
) -> None:
    """Raise CheckpointError unless `value` is a finite number, from `low` to `high` if given."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) <= sys.float_info.max:  # NaN is not; an int may be larger
        raise CheckpointError(f"{name}={reprlib.repr(value)}: must be a number")
    if (low is not None and value < low) or (high is not None and value > high):
        raise CheckpointError(f"{name}={value!r}: must be in [{low}, {high}]")


def check_digits(name: str, value: Any, count: int) -> None:
    """Raise CheckpointError unless `value` is a text of so many hexadecimal digits."""
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{count}}}", value):
        raise CheckpointError(f"{name}={reprlib.repr(value)}: must have {count} hexadecimal digits")


def check_integers(name: str, values: Any, ndim: int, most: int) -> None:
    """Raise CheckpointError unless `values` is an array of integers in 0..`most`."""
    fit = isinstance(values, np.ndarray) and values.ndim == ndim and values.dtype.kind in "iu"
    if not fit or (values.size and not 0 <= values.min() <= values.max() <= most):
        raise CheckpointError(f"{name}: must be an array of {ndim} axes, integers in 0..{most}")


def check_like(name: str, stored: Any, own: np.ndarray) -> None:
    """Raise CheckpointError unless `stored` has shape and type of `own` and is finite."""
    if not isinstance(stored, np.ndarray):
        raise CheckpointError(f"{name}: is missing, or no array")
    require_like(name, stored, own)
    if not np.isfinite(stored).all():
        raise CheckpointError(f"{name}: is not finite")

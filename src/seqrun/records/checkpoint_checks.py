"""Whether what a checkpoint holds can be a run's own: types, ranges, shapes."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from seqrun.algorithms.base import BaseAlgorithm

COUNTERS = (
    "task",
    "epoch",
    "task_is_done",
    "global_step",
    "epoch_first_step",
    "epoch_loss_sum",
    "epoch_samples",
    "samples_seen",
    "gradient_steps",
    "memory_bytes",
    "task_losses",
    "final_loss",
    "timing",
)
"""Attributes of an algorithm that say where it stands and what it has counted."""
WHOLE = (
    "task",
    "epoch",
    "global_step",
    "epoch_first_step",
    "samples_seen",
    "gradient_steps",
    "memory_bytes",
)
MATRICES = ("accuracy_matrix", "accuracy_matrix_task_aware")
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


def check_position(counters: Mapping[str, Any], algorithm: BaseAlgorithm) -> None:
    """Raise CheckpointError unless the counters lie on the way of `algorithm`, set up anew."""
    task, epoch, step = counters["task"], counters["epoch"], counters["global_step"]
    if task not in algorithm.trained_tasks():
        raise CheckpointError(f"checkpoint: task={task}: is not one that this run trains on")
    if not 1 <= epoch <= algorithm.training.epochs(task):
        raise CheckpointError(f"checkpoint: epoch={epoch}: task {task} has no such epoch")
    if not counters["epoch_first_step"] <= step <= algorithm.total_steps:
        raise CheckpointError(
            f"checkpoint: global_step={step}: must be between the epoch's first, "
            f"{counters['epoch_first_step']}, and the run's last, {algorithm.total_steps}"
        )
    steps, batch_size = step - counters["epoch_first_step"], algorithm.benchmark.batch_size_of(task)
    shorter = getattr(algorithm, "glances", 1)  # at most: those on an epoch's last batch
    if not (steps - shorter) * batch_size < counters["epoch_samples"] <= steps * batch_size:
        raise CheckpointError(
            f"checkpoint: epoch_samples={counters['epoch_samples']}: cannot be those of {steps} "
            f"steps, from epoch_first_step={counters['epoch_first_step']} on"
        )
    seen, most = counters["samples_seen"], step * algorithm.samples_per_step()
    if seen > most:
        raise CheckpointError(f"checkpoint: samples_seen={seen}: must be at most {most}")
    done = [t for t in algorithm.trained_tasks() if t < task + counters["task_is_done"]]
    if len(counters["task_losses"]) != len(done):
        raise CheckpointError(f"checkpoint: task_losses: must be of {len(done)} tasks")
    if not set(algorithm.timing) <= set(counters["timing"]):  # a method may count others too
        raise CheckpointError(f"checkpoint: timing: must have {', '.join(algorithm.timing)}")


def check_record(arrays: Mapping[str, np.ndarray], algorithm: BaseAlgorithm) -> None:
    """Raise CheckpointError unless the matrices have the run's shape and hold fractions."""
    for name in arrays:
        if name.startswith(RECORD) and name.removeprefix(RECORD) not in MATRICES:
            raise CheckpointError(f"checkpoint: {name}: is not one of this run's")
    for name in MATRICES:
        own, stored = getattr(algorithm, name), arrays.get(RECORD + name)
        if (own is None) != (stored is None):
            raise CheckpointError(f"checkpoint: {name}: is there though it must not be, or is not")
        if stored is None:
            continue
        _check_like(name, stored, own)
        if ((stored < 0) | (stored > 1)).any():
            raise CheckpointError(f"checkpoint: {name}: must hold fractions in [0, 1]")


def check_arrays(arrays: Mapping[str, np.ndarray], algorithm: BaseAlgorithm) -> None:
    """Raise CheckpointError unless parameters, states and memory are like those of `algorithm`."""
    own = {n: a for n, a in algorithm.export_arrays().items() if not n.startswith(MEMORY)}
    names = {name for name in arrays if not name.startswith(MEMORY)}
    for name in sorted(names ^ set(own)):
        known = "is not one of this run's" if name in names else "is missing"
        raise CheckpointError(f"checkpoint: {name}: {known}")
    for name, array in own.items():
        _check_like(name, arrays[name], array)
    memory = {n.removeprefix(MEMORY): a for n, a in arrays.items() if n.startswith(MEMORY)}
    mechanism = getattr(algorithm, "memory", None)
    if mechanism is not None:  # KCL has a memory of its own kind, with checks of its own
        check_memory(memory, algorithm, mechanism.capacity(algorithm.num_tasks))


def weights_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return canonical name -> array of the parameters and statistics among a run's arrays."""
    return {
        name.removeprefix(group): array
        for group in WEIGHTS
        for name, array in arrays.items()
        if name.startswith(group)
    }


def check_weights(weights: Mapping[str, np.ndarray], algorithm: BaseAlgorithm) -> None:
    """Raise CheckpointError unless parameters and statistics are like those of `algorithm`."""
    own = weights_of(algorithm.export_arrays())
    for name in sorted(set(weights) ^ set(own)):
        known = "is not in this network" if name in weights else "is missing"
        raise CheckpointError(f"checkpoint: {name}: {known}")
    for name, array in own.items():
        _check_like(name, weights[name], array)


def check_memory(
    memory: Mapping[str, np.ndarray], algorithm: BaseAlgorithm, capacity: int
) -> None:
    """Raise CheckpointError unless stored samples can be of the stream.

    Args:
        memory: "seen", and "x", "y", "t" unless nothing is stored.
        algorithm: whose stream it is.
        capacity: samples that may be stored.
    """
    if set(memory) not in ({"seen"}, {"seen", "x", "y", "t"}):
        raise CheckpointError("checkpoint: memory: must have seen, and x, y, t if it has samples")
    seen = memory["seen"]
    if seen.shape != () or seen.dtype.kind != "i" or seen < 0:
        raise CheckpointError("checkpoint: memory/seen: must be an integer >= 0")
    if "x" not in memory:
        return
    x, y, t = (memory[name] for name in ("x", "y", "t"))
    shape, benchmark = (len(y), *algorithm.benchmark.input_shape), algorithm.benchmark
    fit = x.shape == shape and y.ndim == 1 and t.shape == y.shape and x.dtype == np.uint8
    if not fit or len(y) > capacity:
        raise CheckpointError(
            f"checkpoint: memory: {x.dtype} x{x.shape}, y{y.shape}, t{t.shape}: must be at most "
            f"{capacity} samples of uint8 {benchmark.input_shape}"
        )
    for name, labels, most in (("y", y, benchmark.num_classes), ("t", t, algorithm.num_tasks)):
        integers = labels.dtype.kind in "iu"
        if not integers or (len(labels) and not 0 <= labels.min() <= labels.max() < most):
            raise CheckpointError(f"checkpoint: memory/{name}: must be integers in 0..{most - 1}")


def _check_like(name: str, stored: np.ndarray, own: np.ndarray) -> None:
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
        raise CheckpointError(
            f"{name}={reprlib.repr(value)}: must have {count} hexadecimal digits"
        )


def check_integers(name: str, values: Any, ndim: int, most: int) -> None:
    """Raise CheckpointError unless `values` is an array of integers in 0..`most`."""
    fit = isinstance(values, np.ndarray) and values.ndim == ndim and values.dtype.kind in "iu"
    if not fit or (values.size and not 0 <= values.min() <= values.max() <= most):
        raise CheckpointError(f"{name}: must be an array of {ndim} axes, integers in 0..{most}")


def check_like(name: str, stored: Any, own: np.ndarray) -> None:
    """Raise CheckpointError unless `stored` has shape and type of `own` and is finite."""
    if not isinstance(stored, np.ndarray):
        raise CheckpointError(f"{name}: is missing, or no array")
    _check_like(name, stored, own)
    if not np.isfinite(stored).all():
        raise CheckpointError(f"{name}: is not finite")

"""Make a checkpoint of a run, and continue a run from a checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from seqrun.checks import ConfigError
from seqrun.files import to_json
from seqrun.loggers.base import BaseLogger, RunInfo
from seqrun.records.checkpoint import CALLBACK, RECORD, Checkpoint
from seqrun.records.checkpoint_checks import (
    MEMORY,
    CheckpointError,
    check_memory,
    check_same_arrays,
    check_whole,
    require_like,
)
from seqrun.records.progress import MATRICES, Progress
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.callback import Run


def checkpoint_of(run: Run, algorithm: BaseAlgorithm) -> Checkpoint:
    """Return a copy of a run's complete state; loggers flush what was logged."""
    arrays = dict(algorithm.export_arrays())
    arrays |= {RECORD + name: np.array(m) for name, m in run.progress.matrices.items()}
    callbacks = {}
    for name, callback in named(run.callbacks).items():
        exported = callback.export_state(run)
        own_arrays = {key: v for key, v in exported.items() if isinstance(v, np.ndarray)}
        arrays |= {f"{CALLBACK}{name}/{key}": array for key, array in own_arrays.items()}
        callbacks[name] = {key: v for key, v in exported.items() if key not in own_arrays}
    loggers = named(run.loggers)
    state = {
        "counters": run.progress.counters,
        "num_threads": algorithm.engine.execution["num_threads"],
        "callbacks": callbacks,
        "loggers": {name: logger.export_state() for name, logger in loggers.items()},
    }
    return Checkpoint(arrays, json.loads(to_json(state)))


def restore_progress(checkpoint: Checkpoint, algorithm: BaseAlgorithm) -> None:
    """Restore counters and matrices of an algorithm that was just set up.

    Raises:
        CheckpointError: they cannot be from a run of this experiment.
    """
    counters = checkpoint.state["counters"]
    _check_position(counters, algorithm)
    stored = sum(array.nbytes for array in checkpoint.arrays.values())
    check_whole("checkpoint: memory_bytes", counters["memory_bytes"], stored)
    matrices = _checked_matrices(checkpoint.arrays, algorithm)
    algorithm.progress = Progress.restored(counters, matrices)


def restore_arrays(checkpoint: Checkpoint, algorithm: BaseAlgorithm) -> None:
    """Restore the algorithm's parameters, statistics, states and memory.

    Raises:
        CheckpointError: they cannot be from a run of this experiment.
    """
    others = (RECORD, CALLBACK)
    arrays = {n: a for n, a in checkpoint.arrays.items() if not n.startswith(others)}
    _check_arrays(arrays, algorithm)
    with _naming_part(f"algo={algorithm.name}"):
        algorithm.import_arrays(arrays)


def check_parts(checkpoint: Checkpoint, run: Run, info: RunInfo) -> None:
    """Check that all callbacks and loggers can continue, before any file is opened.

    Raises:
        CheckpointError: a state cannot be from a run of this experiment.
    """
    for name, callback in named(run.callbacks).items():
        if name in checkpoint.state["callbacks"]:
            with _naming_part(f"callbacks.{name}"):
                callback.check_state(run, checkpoint.callback_state(name))
    for name, logger in named(run.loggers).items():
        if name in checkpoint.state["loggers"]:
            with _naming_part(f"loggers.{name}"):
                logger.check_state(info, checkpoint.state["loggers"][name])


def restore_callbacks(checkpoint: Checkpoint, run: Run) -> None:
    """Restore the state of every callback that is in the checkpoint; others start fresh."""
    for name, callback in named(run.callbacks).items():
        if name in checkpoint.state["callbacks"]:
            with _naming_part(f"callbacks.{name}"):
                callback.import_state(run, checkpoint.callback_state(name))


def restore_loggers(checkpoint: Checkpoint, loggers: Sequence[BaseLogger]) -> None:
    """Restore the state of every open logger that is in the checkpoint; others start fresh."""
    for name, logger in named(loggers).items():
        if name in checkpoint.state["loggers"]:
            with _naming_part(f"loggers.{name}"):
                logger.import_state(checkpoint.state["loggers"][name])


def named(parts: Iterable[Any]) -> dict[str, Any]:
    """Return "<class>-<n>" -> part, where n counts the parts of this class from 1."""
    count: Counter[str] = Counter()
    by_name = {}
    for part in parts:
        kind = type(part).__name__
        count[kind] += 1
        by_name[f"{kind}-{count[kind]}"] = part
    return by_name


@contextmanager
def _naming_part(name: str) -> Iterator[None]:
    """Add the name of a part to a CheckpointError; turn its other errors into one."""
    try:
        yield
    except CheckpointError as error:
        what = str(error).removeprefix("checkpoint: ")
        raise CheckpointError(f"checkpoint: {name}: {what}") from error
    except (ConfigError, OSError, MemoryError):
        raise  # not due to the checkpoint: an earlier one would fail in the same way
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"checkpoint: {name}: cannot be continued from: {what}") from error


# ---- checks that a checkpoint fits the run


def _check_position(counters: Mapping[str, Any], algorithm: BaseAlgorithm) -> None:
    """Raise CheckpointError unless a run of `algorithm` can have these counters."""
    task, epoch, step = counters["task"], counters["epoch"], counters["global_step"]
    total_steps = algorithm.engine.total_steps
    if task not in algorithm.trained_tasks():
        raise CheckpointError(f"checkpoint: task={task}: is not a task that this run trains on")
    if not 1 <= epoch <= algorithm.epochs(task):
        raise CheckpointError(f"checkpoint: epoch={epoch}: task {task} has no such epoch")
    if not counters["epoch_first_step"] <= step <= total_steps:
        raise CheckpointError(
            f"checkpoint: global_step={step}: must be between the epoch's first, "
            f"{counters['epoch_first_step']}, and the run's last, {total_steps}"
        )
    steps, batch_size = step - counters["epoch_first_step"], algorithm.benchmark.batch_size_of(task)
    partial = algorithm.steps_per_batch  # most steps that can be on a partial last batch
    if not (steps - partial) * batch_size < counters["epoch_samples"] <= steps * batch_size:
        raise CheckpointError(
            f"checkpoint: epoch_samples={counters['epoch_samples']}: does not fit {steps} steps "
            f"since epoch_first_step={counters['epoch_first_step']}"
        )
    seen, most = counters["samples_seen"], step * algorithm.samples_per_step()
    if seen > most:
        raise CheckpointError(f"checkpoint: samples_seen={seen}: must be at most {most}")
    done = [t for t in algorithm.trained_tasks() if t < task + counters["task_is_done"]]
    if len(counters["task_losses"]) != len(done):
        raise CheckpointError(f"checkpoint: task_losses: must have {len(done)} entries")
    own = algorithm.progress.timing
    if not set(own) <= set(counters["timing"]):  # a method may add other times
        raise CheckpointError(f"checkpoint: timing: must have {', '.join(own)}")


def _checked_matrices(
    arrays: Mapping[str, np.ndarray], algorithm: BaseAlgorithm
) -> dict[str, np.ndarray]:
    """Return the matrices; raise CheckpointError unless they have the run's shape and fractions."""
    for name in arrays:
        if name.startswith(RECORD) and name.removeprefix(RECORD) not in MATRICES:
            raise CheckpointError(f"checkpoint: {name}: is not an array of this run")
    own_matrices, matrices = algorithm.progress.matrices, {}
    for name in MATRICES:
        own, stored = own_matrices.get(name), arrays.get(RECORD + name)
        if (own is None) != (stored is None):
            state = "is missing" if stored is None else "must not be there"
            raise CheckpointError(f"checkpoint: {name}: {state}")
        if own is None or stored is None:
            continue
        require_like(name, stored, own)
        if ((stored < 0) | (stored > 1)).any():
            raise CheckpointError(f"checkpoint: {name}: must hold fractions in [0, 1]")
        matrices[name] = stored
    return matrices


def _check_arrays(arrays: Mapping[str, np.ndarray], algorithm: BaseAlgorithm) -> None:
    """Raise CheckpointError unless parameters, states and memory fit those of `algorithm`."""
    own = {n: a for n, a in algorithm.export_arrays().items() if not n.startswith(MEMORY)}
    given = {n: a for n, a in arrays.items() if not n.startswith(MEMORY)}
    check_same_arrays(given, own, foreign="is not an array of this run")
    memory = {n.removeprefix(MEMORY): a for n, a in arrays.items() if n.startswith(MEMORY)}
    mechanism = getattr(algorithm, "memory", None)
    if mechanism is not None:  # KCL has coresets instead, which are not checked
        check_memory(memory, algorithm, mechanism.capacity(algorithm.num_tasks))

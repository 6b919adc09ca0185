"""A run as a checkpoint, and a checkpoint as a run that goes on."""

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
from seqrun.records.progress import MATRICES
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.callback import Run


def checkpoint_of(run: Run, algorithm: BaseAlgorithm) -> Checkpoint:
    """Copy what a run carries; what loggers were told so far reaches the disk."""
    arrays = dict(algorithm.export_arrays())
    arrays |= {RECORD + name: np.array(m) for name, m in run.progress.matrices.items()}
    callbacks = {}
    for name, callback in named(run.callbacks).items():
        exported = callback.export_state(run)
        own = {key: v for key, v in exported.items() if isinstance(v, np.ndarray)}
        arrays |= {f"{CALLBACK}{name}/{key}": array for key, array in own.items()}
        callbacks[name] = {key: v for key, v in exported.items() if key not in own}
    loggers = named(run.loggers)
    state = {
        "counters": run.progress.counters,
        "callbacks": callbacks,
        "loggers": {name: logger.export_state() for name, logger in loggers.items()},
    }
    return Checkpoint(arrays, json.loads(to_json(state)))


def restore_progress(checkpoint: Checkpoint, algorithm: BaseAlgorithm) -> None:
    """Give an algorithm that was set up anew the counters and matrices.

    Raises:
        CheckpointError: they are not those of a run of this experiment.
    """
    counters = checkpoint.state["counters"]
    _check_position(counters, algorithm)
    stored = sum(array.nbytes for array in checkpoint.arrays.values())
    check_whole("checkpoint: memory_bytes", counters["memory_bytes"], stored)
    matrices = _checked_matrices(checkpoint.arrays, algorithm)
    algorithm.progress.restore(counters, matrices)


def restore_arrays(checkpoint: Checkpoint, algorithm: BaseAlgorithm) -> None:
    """Give the algorithm parameters, statistics, states and memory.

    Raises:
        CheckpointError: they are not those of a run of this experiment.
    """
    own = (RECORD, CALLBACK)
    arrays = {n: a for n, a in checkpoint.arrays.items() if not n.startswith(own)}
    _check_arrays(arrays, algorithm)
    with _of_part(f"algo={algorithm.name}"):
        algorithm.import_arrays(arrays)


def check_parts(checkpoint: Checkpoint, run: Run, info: RunInfo) -> None:
    """Let callbacks and loggers see, before anything is opened, whether they can go on.

    Raises:
        CheckpointError: what one of them kept is not of a run of this experiment.
    """
    for name, callback in named(run.callbacks).items():
        if name in checkpoint.state["callbacks"]:
            with _of_part(f"callbacks.{name}"):
                callback.check_state(run, checkpoint.kept_by(name))
    for name, logger in named(run.loggers).items():
        if name in checkpoint.state["loggers"]:
            with _of_part(f"loggers.{name}"):
                logger.check_state(info, checkpoint.state["loggers"][name])


def restore_callbacks(checkpoint: Checkpoint, run: Run) -> None:
    """Give the run's callbacks what they exported; a new one knows nothing."""
    for name, callback in named(run.callbacks).items():
        if name in checkpoint.state["callbacks"]:
            with _of_part(f"callbacks.{name}"):
                callback.import_state(run, checkpoint.kept_by(name))


def restore_loggers(checkpoint: Checkpoint, loggers: Sequence[BaseLogger]) -> None:
    """Tell the loggers, which are open, where they stood; a new one knows nothing."""
    for name, logger in named(loggers).items():
        if name in checkpoint.state["loggers"]:
            with _of_part(f"loggers.{name}"):
                logger.import_state(checkpoint.state["loggers"][name])


def named(parts: Iterable[Any]) -> dict[str, Any]:
    """Return <class>-<n> -> part: the n-th of its class, whatever stands between."""
    count: Counter[str] = Counter()
    found = {}
    for part in parts:
        kind = type(part).__name__
        count[kind] += 1
        found[f"{kind}-{count[kind]}"] = part
    return found


@contextmanager
def _of_part(name: str) -> Iterator[None]:
    """Name the part that cannot go on from what it kept; a part may know nothing of checkpoints."""
    try:
        yield
    except CheckpointError as error:
        what = str(error).removeprefix("checkpoint: ")
        raise CheckpointError(f"checkpoint: {name}: {what}") from error
    except (ConfigError, OSError, MemoryError):
        raise  # of the machine or the directory, which an earlier checkpoint would meet too
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"checkpoint: {name}: cannot be continued from: {told}") from error


# ---- whether a checkpoint can be this run's


def _check_position(counters: Mapping[str, Any], algorithm: BaseAlgorithm) -> None:
    """Raise CheckpointError unless the counters lie on the way of `algorithm`, set up anew."""
    task, epoch, step = counters["task"], counters["epoch"], counters["global_step"]
    total_steps = algorithm.engine.total_steps
    if task not in algorithm.trained_tasks():
        raise CheckpointError(f"checkpoint: task={task}: is not one that this run trains on")
    if not 1 <= epoch <= algorithm.training.epochs(task):
        raise CheckpointError(f"checkpoint: epoch={epoch}: task {task} has no such epoch")
    if not counters["epoch_first_step"] <= step <= total_steps:
        raise CheckpointError(
            f"checkpoint: global_step={step}: must be between the epoch's first, "
            f"{counters['epoch_first_step']}, and the run's last, {total_steps}"
        )
    steps, batch_size = step - counters["epoch_first_step"], algorithm.benchmark.batch_size_of(task)
    shorter = algorithm.steps_per_batch  # at most: those on an epoch's last batch
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
    own = algorithm.progress.timing
    if not set(own) <= set(counters["timing"]):  # a method may count others too
        raise CheckpointError(f"checkpoint: timing: must have {', '.join(own)}")


def _checked_matrices(
    arrays: Mapping[str, np.ndarray], algorithm: BaseAlgorithm
) -> dict[str, np.ndarray]:
    """Return the matrices; raise CheckpointError unless of the run's shape, with fractions."""
    for name in arrays:
        if name.startswith(RECORD) and name.removeprefix(RECORD) not in MATRICES:
            raise CheckpointError(f"checkpoint: {name}: is not one of this run's")
    own_matrices, found = algorithm.progress.matrices, {}
    for name in MATRICES:
        own, stored = own_matrices.get(name), arrays.get(RECORD + name)
        if (own is None) != (stored is None):
            raise CheckpointError(f"checkpoint: {name}: is there though it must not be, or is not")
        if own is None or stored is None:
            continue
        require_like(name, stored, own)
        if ((stored < 0) | (stored > 1)).any():
            raise CheckpointError(f"checkpoint: {name}: must hold fractions in [0, 1]")
        found[name] = stored
    return found


def _check_arrays(arrays: Mapping[str, np.ndarray], algorithm: BaseAlgorithm) -> None:
    """Raise CheckpointError unless parameters, states and memory are like those of `algorithm`."""
    own = {n: a for n, a in algorithm.export_arrays().items() if not n.startswith(MEMORY)}
    given = {n: a for n, a in arrays.items() if not n.startswith(MEMORY)}
    check_same_arrays(given, own, foreign="is not one of this run's")
    memory = {n.removeprefix(MEMORY): a for n, a in arrays.items() if n.startswith(MEMORY)}
    mechanism = getattr(algorithm, "memory", None)
    if mechanism is not None:  # KCL has coresets instead, which are not checked
        check_memory(memory, algorithm, mechanism.capacity(algorithm.num_tasks))

"""Checkpoints: the complete state of a run as named arrays and plain data, for any framework.

`<run>/checkpoints/<global step>/` holds `tensors.safetensors` (which cannot execute code when it is
read) and `state.json`, whose checksums of the tensors and of itself reveal damage. A checkpoint is
written under a temporary name and renamed once it is complete on disk. A resumed run ends with the
same bits as one that was never stopped: checkpoints are made only at the fixed ends of chunks, and
all randomness is derived from the seed and the position.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seqrun.files import (
    naming,
    remove_temporaries,
    sync_directory,
    temporary_beside,
    to_json,
    write_through,
)
from seqrun.records.checkpoint_checks import (
    RECORD,
    CheckpointError,
    check_state,
    not_finite,
    weights_of,
)

SCHEMA = 1
FOLDER = "checkpoints"
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
CALLBACK = "callback/"
"""Prefix of the names of callbacks' arrays."""
NAME = re.compile("[0-9]{9,}(-end)?")
DAMAGED = ".damaged"
"""Suffix of the names of checkpoints from which a run could not continue."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at the end of a chunk or of a task.

    Attributes:
        arrays: name -> array: parameters, statistics, optimizer, algorithm state and memory in
            canonical layout, matrices, and the arrays of callbacks.
        state: plain data: counters, the number of CPU threads, and what callbacks and loggers keep.
        path: the folder that it was read from; None = it was not.
    """

    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]
    path: Path | None = None

    @property
    def task(self) -> int:
        """Task (1-based) in which it was made."""
        return self.state["counters"]["task"]

    @property
    def epoch(self) -> int:
        """Epoch (1-based) in which it was made."""
        return self.state["counters"]["epoch"]

    @property
    def task_is_done(self) -> bool:
        """Whether it was made after the task's evaluation, not within its training."""
        return self.state["counters"]["task_is_done"]

    def callback_state(self, name: str) -> dict[str, Any]:
        """Return the state of a callback, plain data and arrays."""
        prefix = f"{CALLBACK}{name}/"
        own = [n for n in self.arrays if n.startswith(prefix)]
        arrays = {n.removeprefix(prefix): self.arrays[n] for n in own}
        return {**self.state["callbacks"][name], **arrays}


# ---- files


def save(
    checkpoint: Checkpoint, directory: Path, *, config_hash: str, keep: int = 2
) -> Path | None:
    """Write a checkpoint into `directory`/checkpoints and delete all but the last `keep` so far.

    Checkpoints of later steps are neither counted nor deleted. A valid checkpoint of the same step
    is not overwritten, since a run reaches a step with one state only. If an array is not finite,
    nothing is written and None is returned: the check of the next loss, or of the parameters at the
    task's end, will stop the run.

    Raises:
        OSError: the checkpoint could not be written; earlier ones are unchanged.
    """
    from safetensors.numpy import save as to_bytes  # imported lazily: it is slow

    if not_finite(checkpoint.arrays, besides=(RECORD, CALLBACK)):
        return None
    folder = directory / FOLDER
    path = folder / f"{checkpoint.state['counters']['global_step']:09d}"
    if checkpoint.task_is_done:  # sorts after the one made within the task at the same step
        path = path.with_name(path.name + "-end")
    with contextlib.suppress(CheckpointError):
        load(path, config_hash=config_hash)
        return path
    tensors = to_bytes({n: np.array(a, order="C") for n, a in checkpoint.arrays.items()})
    state = {
        "schema": SCHEMA,
        "config_hash": config_hash,
        "sha256": hashlib.sha256(tensors).hexdigest(),
        **checkpoint.state,
    }
    state["state_sha256"] = _checksum(state)
    temporary = temporary_beside(path)
    try:
        with naming(path):
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporaries(folder)
            temporary.mkdir()
            write_through(temporary / TENSORS_FILE, tensors)
            write_through(temporary / STATE_FILE, to_json(state).encode())
            sync_directory(temporary)
            if path.exists():  # a damaged one
                shutil.rmtree(path)
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(folder)
    so_far = [p for p in _all(folder) if _position(p) <= _position(path)]
    for old in so_far[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest(directory: Path, *, config_hash: str | None) -> tuple[Checkpoint | None, list[str]]:
    """Return the last good checkpoint of a run directory, and what is wrong with later ones."""
    wrong: list[str] = []
    for path in reversed(_all(directory / FOLDER)):
        try:
            return load(path, config_hash=config_hash), wrong
        except CheckpointError as error:
            wrong.append(str(error))
    return None, wrong


def load(path: Path, *, config_hash: str | None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: its folder.
        config_hash: hash of the experiment that it must belong to; None = any.

    Raises:
        CheckpointError: it is damaged, of another schema or of another experiment.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        state = json.loads((path / STATE_FILE).read_bytes())
        tensors = (path / TENSORS_FILE).read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise CheckpointError(f"{path / STATE_FILE}: must be an object with schema {SCHEMA}")
    if config_hash is not None and state.get("config_hash") != config_hash:
        raise CheckpointError(
            f"{path}: config_hash={state.get('config_hash')!r}: must be {config_hash!r}"
        )
    if state.pop("state_sha256", None) != _checksum(state):
        raise CheckpointError(f"{path / STATE_FILE}: its checksum does not match its content")
    if hashlib.sha256(tensors).hexdigest() != state.get("sha256"):
        raise CheckpointError(f"{path / TENSORS_FILE}: its checksum does not match {STATE_FILE}")
    check_state(state, path / STATE_FILE)
    try:
        arrays = from_bytes(tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path / TENSORS_FILE}: cannot be read: {error}") from error
    for name in not_finite(arrays, besides=(RECORD, CALLBACK)):
        raise CheckpointError(f"{path / TENSORS_FILE}: {name} is not finite")
    kept = {key: state[key] for key in ("counters", "callbacks", "loggers")}
    kept["num_threads"] = state.get("num_threads")  # earlier versions did not store it
    return Checkpoint(arrays, kept, path)


def set_aside_after(directory: Path, start: Checkpoint | None) -> None:
    """Rename the checkpoints after `start` (None = all), from which the run could not continue.

    Renamed checkpoints no longer count towards those to keep, but remain on disk.

    Raises:
        OSError: the directory cannot be written to.
    """
    for path in _all(directory / FOLDER):
        if start is None or start.path is None or _position(path) > _position(start.path):
            _set_aside(path)


def mark_damaged(checkpoint: Checkpoint) -> None:
    """Rename a checkpoint that proved damaged after it was read, as `set_aside_after` does."""
    assert checkpoint.path is not None  # it was read
    _set_aside(checkpoint.path)


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Return the network weights in a checkpoint of any experiment and backend.

    Args:
        path: a checkpoint's folder, or one seed's run directory, whose last valid checkpoint is
            read.

    Returns:
        Canonical name -> float32 array of parameters and BatchNorm statistics, with kernels as
        (in, out) and HWIO, as an algorithm's `load_weights` takes them.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    path = Path(path)
    if not (path / FOLDER).is_dir():
        arrays = load(path, config_hash=None).arrays
    else:
        found, wrong = latest(path, config_hash=None)
        if found is None:
            raise CheckpointError(wrong[0] if wrong else f"{path / FOLDER}: holds no checkpoint")
        arrays = found.arrays
    return weights_of(arrays)


class TakesWeights(Protocol):
    """The part of an algorithm that `load_weights` uses."""

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Load the weights of another run."""


def load_weights(path: str | Path, algorithm: TakesWeights) -> None:
    """Load the weights in a checkpoint into an algorithm that has not been run.

    This prepares the algorithm's data and builds its network. Optimizer and algorithm state are
    fresh. A later call of `fit` starts from initial weights again.

    Args:
        path: see `read_weights`; from either backend.
        algorithm: an algorithm whose network has the same parameters.

    Raises:
        CheckpointError: as in `read_weights`, or the weights belong to another network.
    """
    algorithm.load_weights(read_weights(path))


def _checksum(state: Mapping[str, Any]) -> str:
    """Return the checksum of a state.json, which does not depend on its formatting."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _all(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first; folders with other names are ignored."""
    if not folder.is_dir():
        return []
    named = (p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir())
    return sorted(named, key=_position)


def _position(path: Path) -> tuple[int, str]:
    """Return the step of a checkpoint's folder, and "end" if it was made after the task."""
    step, _, end = path.name.partition("-")
    return int(step), end

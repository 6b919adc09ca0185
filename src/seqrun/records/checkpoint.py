"""Checkpoints: everything that a run carries, as named arrays and plain data, on any framework.

`<run>/checkpoints/<global step>/` holds `tensors.safetensors` (which cannot execute code when it is
read) and `state.json`, whose checksums of the tensors and of itself tell a damaged checkpoint. A
checkpoint takes its name when all of it is on the disk. A run that continues from one ends with the
same bits as one that was never stopped: positions lie on the fixed grid of chunks, and all
randomness is derived from the seed and the position.
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
"""Where arrays of callbacks stand among the tensors."""
NAME = re.compile("[0-9]{9,}(-end)?")
DAMAGED = ".damaged"
"""How the names of checkpoints end that could not be continued from."""


@dataclass(frozen=True)
class Checkpoint:
    """A run as it stood at the end of a chunk or of a task.

    Attributes:
        arrays: name -> array: parameters, statistics, optimizer, algorithm state and memory in
            canonical layout, matrices, and what callbacks keep.
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

    def kept_by(self, name: str) -> dict[str, Any]:
        """Return what a callback kept, plain data and arrays."""
        prefix = f"{CALLBACK}{name}/"
        own = [n for n in self.arrays if n.startswith(prefix)]
        arrays = {n.removeprefix(prefix): self.arrays[n] for n in own}
        return {**self.state["callbacks"][name], **arrays}


# ---- files


def save(
    checkpoint: Checkpoint, directory: Path, *, config_hash: str, keep: int = 2
) -> Path | None:
    """Write a checkpoint into `directory`/checkpoints and delete all but the last `keep` so far.

    One of a later step is not counted, and stays until the run has come so far. A good one of the
    same step stays as it is: a run comes to a step in one way only. With numbers that are not
    finite none is written, and None returned: the next loss, or the task's end, will end the run.

    Raises:
        OSError: it could not be written; those before are as they were.
    """
    from safetensors.numpy import save as to_bytes  # here: it takes a while

    if not_finite(checkpoint.arrays, besides=(RECORD, CALLBACK)):
        return None
    folder = directory / FOLDER
    path = folder / f"{checkpoint.state['counters']['global_step']:09d}"
    if checkpoint.task_is_done:  # comes after those of the same step within the task
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
        config_hash: of the experiment that it must be of; None = of any.

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
        raise CheckpointError(f"{path / STATE_FILE}: its checksum is not the one in it")
    if hashlib.sha256(tensors).hexdigest() != state.get("sha256"):
        raise CheckpointError(f"{path / TENSORS_FILE}: its checksum is not the one in {STATE_FILE}")
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
    """Rename the checkpoints after `start`, None = all: the run could not continue from them.

    They keep no place among those that are kept, and nothing is lost that may be of use.

    Raises:
        OSError: the directory cannot be written to.
    """
    for path in _all(directory / FOLDER):
        if start is None or start.path is None or _position(path) > _position(start.path):
            _set_aside(path)


def mark_damaged(checkpoint: Checkpoint) -> None:
    """Rename one that was read and turned out to be damaged, as `set_aside_after` does."""
    assert checkpoint.path is not None  # it was read
    _set_aside(checkpoint.path)


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Return the network of a checkpoint, of whichever experiment and backend.

    Args:
        path: a checkpoint's folder, or a run directory (one seed's), whose last good one is read.

    Returns:
        Canonical name -> float32 array of parameters and BatchNorm statistics, kernels as
        (in, out) and HWIO; what `set_weights` of an algorithm takes.

    Raises:
        CheckpointError: there is none, or it is damaged.
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
    """An algorithm, as far as `load_weights` knows it."""

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take the network of another run."""


def load_weights(path: str | Path, algorithm: TakesWeights) -> None:
    """Give an algorithm that was made, and not run yet, the network of a checkpoint.

    Its data are prepared and its network is built; optimizer and algorithm state are fresh, and
    `fit` would start from initial weights again.

    Args:
        path: as `read_weights` takes it; of either backend.
        algorithm: whose network has the same parameters.

    Raises:
        CheckpointError: of `read_weights`, or another network.
    """
    algorithm.load_weights(read_weights(path))


def _checksum(state: Mapping[str, Any]) -> str:
    """Return the checksum of a state.json, which does not depend on how it is laid out."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _all(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first; what has another name is none."""
    if not folder.is_dir():
        return []
    named = (p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir())
    return sorted(named, key=_position)


def _position(path: Path) -> tuple[int, str]:
    """Return the step of a checkpoint's folder, and "end" if it was made after the task."""
    step, _, end = path.name.partition("-")
    return int(step), end

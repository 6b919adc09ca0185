"""Decoded images: written once beside the data, memory-mapped afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from seqrun.benchmarks.source import RawImages
from seqrun.checks import ConfigError

FOLDER = ".seqrun"
_FORM = "1"  # part of every key: change it when the same data are decoded differently
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_UNFINISHED = "unfinished-"
_DAY = 86400


def key_of(*parts: object) -> str:
    """Return the folder name of decoded images: a hash of data and options."""
    return hashlib.md5("\0".join(map(str, (_FORM, *parts))).encode()).hexdigest()


def places(root: Path, key: str) -> tuple[Path, Path]:
    """Return where to look for decoded images: beside the data, then in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / FOLDER / key, cache / "seqrun" / key


def find_folder(root: Path, key: str) -> Path | None:
    """Return the folder of the decoded images; None if there is none."""
    return next((place for place in places(root, key) if place.is_dir()), None)


def decoded(root: Path, key: str, write: Callable[[Path], None], where: str) -> RawImages:
    """Return memory-mapped images and labels; decode them first if necessary.

    They are decoded into a temporary folder, which is renamed when it is complete: concurrent and
    killed processes do no harm.

    Args:
        root: folder of the data; if it is not writable, the user's cache is used.
        key: from `key_of`.
        write: writes x_train.npy, y_train.npy, x_test.npy, y_test.npy into a folder.
        where: prefix of messages.

    Raises:
        ConfigError: raised by `write` (nothing is left behind), no writable place, damaged files.
    """
    place = find_folder(root, key)
    if place is None:
        place = _make(places(root, key), write, where)
    try:
        x_train, y_train, x_test, y_test = (
            np.load(place / f"{name}.npy", mmap_mode="r" if name[0] == "x" else None)
            for name in _ARRAYS
        )
        if len(x_train) != len(y_train) or len(x_test) != len(y_test):
            raise ValueError("images and labels differ in number")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{where}: {place} is damaged ({error}): delete it") from error
    return RawImages(x_train, y_train, x_test, y_test)


def write_images(
    path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray | bytes], where: str
) -> None:
    """Write a .npy file of uint8, block by block.

    It is written rather than mapped, so that a full disk is an error instead of a signal.

    Args:
        path: the file.
        shape: (N, H, W, C).
        blocks: bytes or contiguous uint8 arrays, in order; in total as many bytes as `shape` has.
        where: prefix of messages.

    Raises:
        ConfigError: there is too little disk space.
    """
    needed, free = int(np.prod(shape, dtype=object)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise ConfigError(
            f"{where}: the decoded images need {needed >> 20} MiB in {path.parent.parent}, where "
            f"{free >> 20} MiB are free"
        )
    with open(path, "xb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block if isinstance(block, bytes) else block.data)
        file.flush()
        os.fsync(file.fileno())


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write labels as int32."""
    np.save(path, np.asarray(labels, np.int32), allow_pickle=False)


def _make(candidates: tuple[Path, ...], write: Callable[[Path], None], where: str) -> Path:
    place, temporary = _start(candidates, where)
    try:
        write(temporary)
        with contextlib.suppress(OSError):  # another process was faster: use its result
            temporary.rename(place)
        if not place.is_dir():
            raise ConfigError(f"{where}: cannot write {place}")
    except OSError as error:
        raise ConfigError(f"{where}: cannot decode into {temporary}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            place.parent.rmdir()  # if it is empty
    return place


def _start(candidates: tuple[Path, ...], where: str) -> tuple[Path, Path]:
    """Return the first writable place and a new temporary folder beside it."""
    reasons = []
    for place in candidates:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _remove_old(place.parent)
            return place, Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=place.parent))
        except OSError as error:
            reasons.append(str(error))
    raise ConfigError(f"{where}: no place for the decoded images: {'; '.join(reasons)}")


def _remove_old(folder: Path) -> None:
    """Remove old temporary folders of killed processes."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY:
                shutil.rmtree(path, ignore_errors=True)

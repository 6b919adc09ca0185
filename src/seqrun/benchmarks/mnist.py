"""MNIST: the four idx files, verified and read with NumPy, downloaded if missing."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqrun.benchmarks.download import check_md5, download
from seqrun.benchmarks.source import ImageSource, RawImages, data_root
from seqrun.checks import ConfigError, first_line
from seqrun.files import write_atomically

_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


class _File(NamedTuple):
    """One idx file: name, md5 of the official archive and of the unpacked file, shape."""

    name: str
    archive_md5: str
    md5: str
    shape: tuple[int, ...]


_FILES = (
    _File(
        "train-images-idx3-ubyte",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "6bbc9ace898e44ae57da46a324031adb",
        (60000, 28, 28),
    ),
    _File(
        "train-labels-idx1-ubyte",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "a25bea736e30d166cdddb491f175f624",
        (60000,),
    ),
    _File(
        "t10k-images-idx3-ubyte",
        "9fb629c4189551a2d022fa330f9573f3",
        "2646ac647ad5339dbf082846283269ea",
        (10000, 28, 28),
    ),
    _File(
        "t10k-labels-idx1-ubyte",
        "ec29112dd5afa0611ce80d1b7f02629c",
        "27ae3e4e09519cfbb04c329615203637",
        (10000,),
    ),
)


def load_mnist(data_dir: str | Path | None = None) -> RawImages:
    """Load 60000 training and 10000 test images, 28 x 28 x 1, of 10 classes.

    Archives are unpacked beside them if the folder is writable: files are memory-mapped, so that
    processes share them.

    Args:
        data_dir: has `MNIST/raw/` with archives or unpacked files; None = as in `data_root`.

    Raises:
        ConfigError: a file is missing and cannot be downloaded, or is damaged.
    """
    raw = _ensure_files(data_dir)
    x_train, y_train, x_test, y_test = (_read(raw, file) for file in _FILES)
    return RawImages(
        x_train[..., None], y_train.astype(np.int32), x_test[..., None], y_test.astype(np.int32)
    )


def check_mnist(data_dir: str | Path | None = None) -> None:
    """Raise ConfigError if MNIST is missing and cannot be downloaded, or is damaged."""
    raw = _ensure_files(data_dir)
    for file in _FILES:
        _verified_file(raw, file)


def _find(raw: Path, file: _File) -> Path | None:
    """Return the path of the unpacked file (faster to read) or its archive; None if missing."""
    candidates = (raw / file.name, raw / f"{file.name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _verified_file(raw: Path, file: _File) -> bytes:
    """Return a file's bytes as stored, after verifying their md5."""
    path = _find(raw, file)
    if path is None:
        raise ConfigError(f"data_dir={raw.parent.parent}: {raw / file.name}.gz is missing")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"data_dir={raw.parent.parent}: cannot read {path}: {error}") from error
    expected = file.archive_md5 if path.suffix == ".gz" else file.md5
    check_md5(hashlib.md5(content).hexdigest(), expected, path, f"data_dir={raw.parent.parent}")
    return content


def _read(raw: Path, file: _File) -> np.ndarray:
    """Return the array of an idx file: magic number, sizes (big-endian uint32), then bytes."""
    stored, path = _verified_file(raw, file), raw / file.name
    offset = 4 * (1 + len(file.shape))
    if stored[:2] == b"\x1f\x8b":
        content = gzip.decompress(stored)
        try:
            write_atomically(path, content)
        except OSError:  # the folder is not writable
            return np.frombuffer(content, np.uint8, offset=offset).reshape(file.shape)
    return np.asarray(np.memmap(path, np.uint8, "r", offset, file.shape))


def _ensure_files(data_dir: str | Path | None) -> Path:
    """Return the folder of the files after downloading those that are missing."""
    root = data_root(data_dir)
    raw = root / "MNIST" / "raw"
    missing = {f"{file.name}.gz": file.archive_md5 for file in _FILES if not _find(raw, file)}
    try:
        for name, md5 in missing.items():
            download(_URL + name, raw / name, md5)
    except OSError as error:
        raise ConfigError(
            f"data_dir={root}: MNIST is missing and could not be downloaded "
            f"({first_line(error)}): put {', '.join(missing)} into {raw}, or set data_dir or "
            "SEQRUN_DATA to a folder with MNIST/raw"
        ) from error
    return raw


MNIST = ImageSource(
    input_shape=(28, 28, 1),
    train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    mean=(0.1307,),
    std=(0.3081,),
    checksum=hashlib.md5("".join(file.md5 for file in _FILES).encode()).hexdigest(),
    check=check_mnist,
    load=load_mnist,
)

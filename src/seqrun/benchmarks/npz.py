"""Split NPZ: a user's own arrays in a .npz file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from seqrun.benchmarks import decoded
from seqrun.benchmarks.archive import given_path, hash_of, stamp, zip_opened
from seqrun.benchmarks.source import ImageSource, RawImages
from seqrun.benchmarks.split import Split
from seqrun.checks import ConfigError

NAMES = ("x_train", "y_train", "x_test", "y_test")
_BLOCK = 1 << 20
_MAX_LABEL_BYTES = 1 << 30


class Header(NamedTuple):
    """Type and shape of an array, from its header."""

    dtype: np.dtype
    shape: tuple[int, ...]


class Contents(NamedTuple):
    """The content of a file, without its images.

    Attributes:
        headers: of the arrays.
        labels: "train" and "test" -> (N,) int32.
        checksum: hash of the names, sizes and checksums that the file lists.
    """

    headers: dict[str, Header]
    labels: dict[str, np.ndarray]
    checksum: str


@dataclass(kw_only=True, eq=False)
class SplitNPZ(Split):
    """Split's stream over the arrays x_train, y_train, x_test, y_test of a .npz file.

    x is (N, H, W) or (N, H, W, C) uint8; y is (N,) integers with every class 0..C-1 in both splits.
    The file is written by numpy.savez or numpy.savez_compressed; objects are never unpickled.

    Args:
        path: the file.

    See Split for the others.

    Raises:
        ConfigError: no such file, or other arrays.
    """

    path: str | Path | None = None

    name = "split_npz"

    def __post_init__(self) -> None:
        """Read the headers and labels, and check the arguments."""
        path = given_path(self.path, "a .npz file with x_train, y_train, x_test, y_test")
        self.source = npz_source(path)
        super().__post_init__()


def npz_source(path: Path) -> ImageSource:
    """Return the source of a file's images, which are not read yet."""
    where = f"benchmark.path={path}"
    try:
        contents = _contents(path, stamp(path), where)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error}") from error
    height, width, channels = (*contents.headers["x_train"].shape[1:], 1)[:3]

    def write(folder: Path) -> None:
        with zip_opened(path, where) as archive:
            for split, labels in contents.labels.items():
                shape = (len(labels), height, width, channels)
                blocks = _blocks(archive, f"x_{split}", where)
                decoded.write_images(folder / f"x_{split}.npy", shape, blocks, where)
                decoded.write_labels(folder / f"y_{split}.npy", labels)

    def load(data_dir: str | Path | None) -> RawImages:
        return decoded.decoded(path.parent, decoded.key_of(contents.checksum), write, where)

    def check(data_dir: str | Path | None) -> None:
        load(data_dir)

    return ImageSource(
        input_shape=(height, width, channels),
        train_counts=tuple(np.bincount(contents.labels["train"]).tolist()),
        mean=None,
        std=None,
        checksum=contents.checksum,
        check=check,
        load=load,
    )


@lru_cache(maxsize=8)
def _contents(path: Path, when: tuple[int, int, int], where: str) -> Contents:
    if path.is_dir():
        raise ConfigError(f"{where}: is a folder, must be a .npz file")
    with zip_opened(path, where) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        missing = [name for name in NAMES if f"{name}.npy" not in infos]
        if missing:
            has = ", ".join(name.removesuffix(".npy") for name in infos) or "nothing"
            raise ConfigError(
                f"{where}: must hold {', '.join(NAMES)}; lacks {missing[0]}, has {has}"
            )
        headers = {name: _checked_header(archive, name, where) for name in NAMES}
        _check_shapes(headers, where)
        labels = {
            split: _labels(archive, f"y_{split}", headers[f"y_{split}"], where)
            for split in ("train", "test")
        }
        _check_labels(labels, where)
        used = (infos[f"{name}.npy"] for name in NAMES)
        lines = [f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in used]
    return Contents(headers, labels, hash_of(lines))


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"format {version}")


def _checked_header(archive: zipfile.ZipFile, name: str, where: str) -> Header:
    """Return an array's header; check its type, shape and size."""
    info = archive.getinfo(f"{name}.npy")
    try:
        with archive.open(info) as stream:
            shape, fortran, dtype = _read_header(stream)
            start = stream.tell()
    except Exception as error:  # damaged archives raise many kinds of errors
        raise ConfigError(f"{where}: {name} cannot be read: {error}") from error
    told = f"{where}: {name} is {dtype} of shape {shape}"
    if name[0] == "x" and dtype != np.uint8:
        raise ConfigError(f"{told}, must be uint8")
    if name[0] == "x" and (len(shape) not in (3, 4) or not 1 <= (*shape, 1)[3] <= 4):
        raise ConfigError(f"{told}, must be (N, H, W) or (N, H, W, C) with C of 1 to 4, the last")
    if name[0] == "y" and not np.issubdtype(dtype, np.integer):
        raise ConfigError(f"{told}, must be integers")
    if name[0] == "y" and len(shape) != 1:
        raise ConfigError(f"{told}, must be (N,)")
    if not all(shape):
        raise ConfigError(f"{told}, must not be empty")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if info.file_size != start + size:
        raise ConfigError(f"{told}, which is {size} bytes, but has {info.file_size - start}")
    if fortran and len(shape) > 1:
        raise ConfigError(f"{told} in Fortran order, must be saved as np.ascontiguousarray({name})")
    return Header(dtype, shape)


def _check_shapes(headers: dict[str, Header], where: str) -> None:
    for split in ("train", "test"):
        images, labels = (headers[f"{kind}_{split}"].shape[0] for kind in "xy")
        if images != labels:
            raise ConfigError(f"{where}: x_{split} has {images} images, y_{split} {labels} labels")
    train, test = headers["x_train"].shape[1:], headers["x_test"].shape[1:]
    if train != test:
        raise ConfigError(
            f"{where}: images differ in size: {train} in x_train, {test} in x_test, must be equal"
        )


def _labels(archive: zipfile.ZipFile, name: str, header: Header, where: str) -> np.ndarray:
    if header.shape[0] * header.dtype.itemsize > _MAX_LABEL_BYTES:
        raise ConfigError(f"{where}: {name} has {header.shape[0]} labels, which are too many")
    try:
        with archive.open(f"{name}.npy") as stream:
            labels = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # damaged archives raise many kinds of errors
        raise ConfigError(f"{where}: {name} cannot be read: {error}") from error
    wrong = labels[(labels < 0) | (labels >= len(labels))]
    if len(wrong) and name == "y_train":  # more classes than samples: some class would be empty
        raise ConfigError(f"{where}: {name} has the label {wrong[0]}, must be 0, 1, 2, ...")
    return labels


def _check_labels(labels: dict[str, np.ndarray], where: str) -> None:
    """Raise ConfigError unless every class from 0 to the largest has samples in both splits."""
    classes = int(labels["train"].max()) + 1
    for split, values in labels.items():
        wrong = values[(values < 0) | (values >= classes)]
        if len(wrong):
            raise ConfigError(
                f"{where}: y_{split} has the label {wrong[0]}, must be in 0..{classes - 1}, those "
                "of y_train"
            )
        counts = np.bincount(values.astype(np.int64), minlength=classes)
        if not counts.all():
            raise ConfigError(
                f"{where}: y_{split} has no sample of class {counts.argmin()}, must have each of "
                f"0..{classes - 1}"
            )
        labels[split] = values.astype(np.int32)


def _blocks(archive: zipfile.ZipFile, name: str, where: str) -> Iterator[bytes]:
    """Yield an array's bytes, at most the declared size; the archive's CRC is verified."""
    try:
        with archive.open(f"{name}.npy") as stream:
            _read_header(stream)
            while block := stream.read(_BLOCK):
                yield block
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{where}: {name} cannot be read: {error}") from error

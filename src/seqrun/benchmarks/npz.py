"""Split NPZ: a user's own arrays in a .npz file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
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


class Contents(NamedTuple):
    """The content of a file, without its images.

    Attributes:
        input_shape: (H, W, C) of the images.
        labels: "train" and "test" -> (N,) int32.
        checksum: hash of the names, sizes and checksums that the file lists.
    """

    input_shape: tuple[int, int, int]
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

    def write(folder: Path) -> None:
        with zip_opened(path, where) as archive:
            for split, labels in contents.labels.items():
                shape = (len(labels), *contents.input_shape)
                blocks = _blocks(archive, f"x_{split}", where)
                decoded.write_images(folder / f"x_{split}.npy", shape, blocks, where)
                decoded.write_labels(folder / f"y_{split}.npy", labels)

    def load(data_dir: str | Path | None) -> RawImages:
        return decoded.decoded(path.parent, decoded.key_of(contents.checksum), write, where)

    return ImageSource(
        input_shape=contents.input_shape,
        train_counts=tuple(np.bincount(contents.labels["train"]).tolist()),
        mean=None,
        std=None,
        checksum=contents.checksum,
        check=load,
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
        shapes = {name: _checked_shape(archive, name, where) for name in NAMES}
        _check_shapes(shapes, where)
        train = _labels(archive, "y_train", None, where)
        test = _labels(archive, "y_test", int(train.max()) + 1, where)
        used = (infos[f"{name}.npy"] for name in NAMES)
        lines = [f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in used]
    height, width, channels = (*shapes["x_train"][1:], 1)[:3]
    return Contents((height, width, channels), {"train": train, "test": test}, hash_of(lines))


@contextmanager
def _array(archive: zipfile.ZipFile, name: str, where: str) -> Iterator[IO[bytes]]:
    """Open an array of the archive; raise ConfigError with its name if it cannot be read."""
    try:
        with archive.open(f"{name}.npy") as stream:
            yield stream
    except Exception as error:  # damaged archives raise many kinds of errors
        raise ConfigError(f"{where}: {name} cannot be read: {error}") from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether in Fortran order, and type of an array."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    return readers[np.lib.format.read_magic(stream)](stream)


def _checked_shape(archive: zipfile.ZipFile, name: str, where: str) -> tuple[int, ...]:
    """Return an array's shape; check its type, shape and size."""
    with _array(archive, name, where) as stream:
        shape, fortran, dtype = _read_header(stream)
        start = stream.tell()
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
    size, stored = math.prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").file_size
    if stored != start + size:
        raise ConfigError(f"{told}, which is {size} bytes, but has {stored - start}")
    if fortran and len(shape) > 1:
        raise ConfigError(f"{told} in Fortran order, must be saved as np.ascontiguousarray({name})")
    return shape


def _check_shapes(shapes: dict[str, tuple[int, ...]], where: str) -> None:
    for split in ("train", "test"):
        images, labels = shapes[f"x_{split}"][0], shapes[f"y_{split}"][0]
        if images != labels:
            raise ConfigError(f"{where}: x_{split} has {images} images, y_{split} {labels} labels")
    train, test = shapes["x_train"][1:], shapes["x_test"][1:]
    if train != test:
        raise ConfigError(
            f"{where}: images differ in size: {train} in x_train, {test} in x_test, must be equal"
        )


def _labels(archive: zipfile.ZipFile, name: str, classes: int | None, where: str) -> np.ndarray:
    """Return labels as int32; raise ConfigError unless each class from 0 has samples.

    Args:
        archive: the file.
        name: of the array.
        classes: their number; None = as many as there are.
        where: prefix of messages.
    """
    with _array(archive, name, where) as stream:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
    if classes is None:
        limit, allowed = len(labels), "must be 0, 1, 2, ..."  # with more, some would be empty
    else:
        limit, allowed = classes, f"must be in 0..{classes - 1}, those of y_train"
    wrong = labels[(labels < 0) | (labels >= limit)]
    if len(wrong):
        raise ConfigError(f"{where}: {name} has the label {wrong[0]}, {allowed}")
    counts = np.bincount(labels.astype(np.int64), minlength=classes or 0)
    if not counts.all():
        raise ConfigError(
            f"{where}: {name} has no sample of class {counts.argmin()}, must have each of "
            f"0..{len(counts) - 1}"
        )
    return labels.astype(np.int32)


def _blocks(archive: zipfile.ZipFile, name: str, where: str) -> Iterator[bytes]:
    """Yield an array's bytes, at most the declared size; the archive's CRC is verified."""
    with _array(archive, name, where) as stream:
        _read_header(stream)
        yield from iter(partial(stream.read, _BLOCK), b"")

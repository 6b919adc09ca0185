"""Split Image Folder: a user's own images, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqrun.benchmarks import decoded
from seqrun.benchmarks.archive import Files, folder_files, given_path, stamp, zip_files
from seqrun.benchmarks.images import SUFFIXES, Size, decoded_blocks, size_of_image
from seqrun.benchmarks.source import ImageSource, RawImages
from seqrun.benchmarks.split import Split
from seqrun.checks import ConfigError, whole

SPLITS = ("train", "test")


class Listing(NamedTuple):
    """Names of a split's images, sorted by class and name, and their classes (N,) int32."""

    names: tuple[str, ...]
    labels: np.ndarray


@dataclass(kw_only=True, eq=False)
class SplitImageFolder(Split):
    """Split's stream over a folder or zip archive with train/<class>/ and test/<class>/.

    Classes are numbered by their sorted names. Images are JPEG or PNG, all of the same size unless
    `image_size` is given; grey ones become RGB. They are decoded once, into a folder `.seqrun`
    beside them or, if that is not writable, into $XDG_CACHE_HOME/seqrun.

    Args:
        path: the folder or the archive.
        image_size: resize all images to squares with this side; None = no resizing.

    See Split for the others.

    Raises:
        ConfigError: no such path, a wrong layout, or a class without images in train/ or test/.
    """

    path: str | Path | None = None
    image_size: int | None = None

    name = "split_image_folder"

    def __post_init__(self) -> None:
        """List the images, read the size of the first and check the arguments."""
        if self.image_size is not None:
            whole("benchmark.image_size", self.image_size, 1)
        path = given_path(self.path, "the folder or zip archive with train/ and test/")
        self.source = image_folder_source(path, self.image_size)
        super().__post_init__()


def image_folder_source(path: Path, image_size: int | None = None) -> ImageSource:
    """Return the source of the images below `path`, listed but not decoded."""
    where = f"benchmark.path={path}"
    if path.is_dir():
        return _image_source(folder_files(path, SPLITS, where), path, image_size, where)
    return _archive_source(path, stamp(path), image_size, where)


@lru_cache(maxsize=8)
def _archive_source(
    path: Path, when: tuple[int, int, int], image_size: int | None, where: str
) -> ImageSource:
    """List an archive once unless it is rewritten: a run builds its parts several times."""
    return _image_source(zip_files(path, where), path.parent, image_size, where)


def _image_source(files: Files, root: Path, image_size: int | None, where: str) -> ImageSource:
    classes = _classes(files, where)
    train, test = (_listing(files, split, classes, where) for split in SPLITS)
    size = _image_size(files, train.names[0], image_size, where)
    key = decoded.key_of(files.fingerprint, image_size)

    def write(folder: Path) -> None:
        with files.open() as read:
            for split, listing in zip(SPLITS, (train, test), strict=True):
                blocks = decoded_blocks(read, listing.names, size, f"decoding {split}", where)
                shape = (len(listing.names), size.height, size.width, 3)
                decoded.write_images(folder / f"x_{split}.npy", shape, blocks, where)
                decoded.write_labels(folder / f"y_{split}.npy", listing.labels)

    def load(data_dir: str | Path | None) -> RawImages:
        return decoded.decoded(root, key, write, where)

    return ImageSource(
        input_shape=(size.height, size.width, 3),
        train_counts=tuple(np.bincount(train.labels).tolist()),
        mean=None,
        std=None,
        checksum=files.fingerprint,
        check=load,
        load=load,
    )


def _image_size(files: Files, first: str, image_size: int | None, where: str) -> Size:
    if image_size is not None:
        return Size(image_size, image_size, "image_size", resize=True)
    with files.open() as read:
        height, width = size_of_image(read, first, where)
    return Size(height, width, first)


def _classes(files: Files, where: str) -> list[str]:
    """Return the sorted names of the classes, which both splits must have."""
    found: dict[str, set[str]] = {split: set() for split in SPLITS}
    for name in files.names:
        part, *below = name.split("/")
        if part in found:
            _check_place(name, below, where)
            found[part].add(below[0])
    for folder in files.folders:
        part, *below = folder.split("/")
        if part in found and below:
            found[part].add(below[0])
    for split in SPLITS:
        if not found[split]:
            raise ConfigError(
                f"{where}: has no {split}/<class>/, must hold train/<class>/ and test/<class>/ "
                f"with {', '.join(SUFFIXES)} images"
            )
    for split, other in (SPLITS, SPLITS[::-1]):
        missing = sorted(found[split] - found[other])
        if missing:
            raise ConfigError(
                f"{where}: class {missing[0]!r} is in {split}/ but not in {other}/, must be in both"
            )
    return sorted(found["train"])


def _check_place(name: str, below: Sequence[str], where: str) -> None:
    if len(below) != 2:
        raise ConfigError(f"{where}: {name}: must lie in {name.split('/')[0]}/<class>/ itself")
    if not name.lower().endswith(SUFFIXES):
        raise ConfigError(f"{where}: {name}: must end in {', '.join(SUFFIXES)}")


def _listing(files: Files, split: str, classes: Sequence[str], where: str) -> Listing:
    number = {name: label for label, name in enumerate(classes)}
    names = sorted(
        (name for name in files.names if name.startswith(f"{split}/")),
        key=lambda name: (number[name.split("/")[1]], name),
    )
    labels = np.array([number[name.split("/")[1]] for name in names], np.int32)
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise ConfigError(f"{where}: {split}/{classes[int(counts.argmin())]}/ holds no images")
    return Listing(tuple(names), labels)

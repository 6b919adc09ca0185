"""Tiny ImageNet: the published archive, decoded once; its validation images are the test data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqrun.benchmarks import decoded
from seqrun.benchmarks.archive import Files, Read, folder_files, zip_files
from seqrun.benchmarks.download import ensure_archive
from seqrun.benchmarks.images import Size, decoded_blocks
from seqrun.benchmarks.source import ImageSource, RawImages, data_root
from seqrun.benchmarks.split import Split
from seqrun.checks import ConfigError

_SIZE = Size(64, 64, "the set")
_PARTS = ("wnids.txt", "train", "val")


@dataclass(frozen=True, kw_only=True)
class TinyImageNetFiles:
    """The published files.

    Args:
        md5: of the archive.
        classes: number of classes.
        train_per_class, test_per_class: number of images per class.
        archive: file name of the archive.
        folder: the folder that the archive contains.
        url: where the archive is downloaded from.
    """

    md5: str
    classes: int
    train_per_class: int
    test_per_class: int
    archive: str = "tiny-imagenet-200.zip"
    folder: str = "tiny-imagenet-200"
    url: str = "http://cs231n.stanford.edu/"


def tiny_imagenet_source(files: TinyImageNetFiles) -> ImageSource:
    """Return the source of 64 x 64 x 3 images; classes in the order of their sorted ids."""

    def load(data_dir: str | Path | None) -> RawImages:
        return _load_tiny_imagenet(files, data_root(data_dir))

    def checksum_in(data_dir: str | Path | None) -> str:
        unpacked = _unpacked(files, data_root(data_dir))
        return files.md5 if unpacked is None else f"{files.md5} {unpacked.fingerprint}"

    return ImageSource(
        input_shape=(64, 64, 3),
        train_counts=(files.train_per_class,) * files.classes,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        checksum=files.md5,
        check=load,
        load=load,
        checksum_in=checksum_in,
    )


def _unpacked(published: TinyImageNetFiles, root: Path) -> Files | None:
    """Return the files of the unpacked folder if it will be read, else None.

    No checksum is published for it: any change of a file makes it different data.
    """
    folder = root / published.folder
    decoded_before = decoded.find_folder(root, decoded.key_of(published.md5)) is not None
    if decoded_before or (root / published.archive).is_file() or not folder.is_dir():
        return None
    return folder_files(folder, _PARTS, f"data_dir={root}")


def _load_tiny_imagenet(published: TinyImageNetFiles, root: Path) -> RawImages:
    where = f"data_dir={root}"
    archive, unpacked = root / published.archive, _unpacked(published, root)
    key = decoded.key_of(published.md5)
    if unpacked is not None:
        key = decoded.key_of(published.md5, unpacked.fingerprint)
    elif decoded.find_folder(root, key) is None:
        url = published.url + published.archive
        ensure_archive("Tiny ImageNet", archive, published.folder, url, published.md5, where)

    def write(into: Path) -> None:
        files = zip_files(archive, where) if unpacked is None else unpacked
        with files.open() as read:
            for split, (names, labels) in _samples(published, files, read, where).items():
                blocks = decoded_blocks(read, names, _SIZE, f"decoding {split}", where)
                path = into / f"x_{split}.npy"
                decoded.write_images(path, (len(names), 64, 64, 3), blocks, where)
                decoded.write_labels(into / f"y_{split}.npy", labels)

    return decoded.decoded(root, key, write, where)


def _samples(
    published: TinyImageNetFiles, files: Files, read: Read, where: str
) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return split -> names of its images, sorted by class and name, and their classes."""
    for name in ("wnids.txt", "val/val_annotations.txt"):
        if name not in files.names:
            raise ConfigError(f"{where}: {published.folder}/{name} is missing")
    ids = sorted(read("wnids.txt").decode().split())
    if len(set(ids)) != published.classes or len(ids) != published.classes:
        raise ConfigError(f"{where}: wnids.txt must name {published.classes} classes")
    of_class = {wnid: label for label, wnid in enumerate(ids)}
    train: list[list[str]] = [[] for _ in ids]
    for name in files.names:
        parts = name.split("/")
        if len(parts) == 4 and (parts[0], parts[2]) == ("train", "images"):
            if parts[1] not in of_class:
                raise ConfigError(f"{where}: {name} is of a class that is not in wnids.txt")
            train[of_class[parts[1]]].append(name)
    test: list[list[str]] = [[] for _ in ids]
    present = set(files.names)
    for line in read("val/val_annotations.txt").decode().splitlines():
        name, wnid = (*line.split("\t"), "", "")[:2]
        if wnid not in of_class:
            raise ConfigError(f"{where}: val_annotations.txt: class {wnid!r} is not in wnids.txt")
        if f"val/images/{name}" not in present:
            raise ConfigError(f"{where}: {published.folder}/val/images/{name} is missing")
        test[of_class[wnid]].append(f"val/images/{name}")
    for part, groups, number in (
        ("train", train, published.train_per_class),
        ("val", test, published.test_per_class),
    ):
        for wnid, names in zip(ids, groups, strict=True):
            if len(names) != number:
                raise ConfigError(
                    f"{where}: {published.folder}/{part} has {len(names)} images of class {wnid}, "
                    f"must have {number}"
                )
    return {"train": _sorted_names(train), "test": _sorted_names(test)}


def _sorted_names(groups: list[list[str]]) -> tuple[list[str], np.ndarray]:
    labels = np.repeat(np.arange(len(groups)), [len(names) for names in groups])
    return [name for names in groups for name in sorted(names)], labels


TINY_IMAGENET_FILES = TinyImageNetFiles(
    md5="90528d7ca1a48142e341f4ef8d21d0de",
    classes=200,
    train_per_class=500,
    test_per_class=50,
)
TINY_IMAGENET = tiny_imagenet_source(TINY_IMAGENET_FILES)


@dataclass(kw_only=True, eq=False)
class SplitTinyImageNet(Split):
    """Split's stream over Tiny ImageNet: 100000 / 10000 images of 64 x 64 x 3, 200 classes."""

    num_tasks: int = 20

    name = "split_tiny_imagenet"
    source = TINY_IMAGENET

"""CIFAR-10 and CIFAR-100: the published batches, unpickled only if their checksum is right."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqrun.benchmarks import decoded
from seqrun.benchmarks.download import check_md5, ensure_archive
from seqrun.benchmarks.source import ImageSource, RawImages, data_root
from seqrun.benchmarks.split import Split
from seqrun.checks import ConfigError

_URL = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True, kw_only=True)
class CifarFiles:
    """The published files.

    Args:
        title: name in messages.
        archive: file name of the archive.
        md5: of the archive.
        folder: the folder that the archive contains.
        train, test: (name, md5) of the batches in the folder.
        labels: key of the labels in a batch.
        url: where the archive is downloaded from.
    """

    title: str
    archive: str
    md5: str
    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    labels: str
    url: str = _URL


def cifar_source(
    files: CifarFiles, counts: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> ImageSource:
    """Return the source of the 32 x 32 x 3 images in the files."""

    def load(data_dir: str | Path | None) -> RawImages:
        return _load_cifar(files, data_root(data_dir))

    return ImageSource(
        input_shape=(32, 32, 3),
        train_counts=tuple(counts),
        mean=tuple(mean),
        std=tuple(std),
        checksum=files.md5,
        check=load,
        load=load,
    )


def _load_cifar(files: CifarFiles, root: Path) -> RawImages:
    where = f"data_dir={root}"
    key = decoded.key_of(files.md5)
    if decoded.find_folder(root, key) is None and not _is_unpacked(files, root):
        url = files.url + files.archive
        ensure_archive(files.title, root / files.archive, files.folder, url, files.md5, where)

    def write(folder: Path) -> None:
        for split, names in (("train", files.train), ("test", files.test)):
            batches = [
                pickle.loads(_verified_batch(files, root, name, md5, where), encoding="latin1")
                for name, md5 in names
            ]
            rows = np.concatenate([batch["data"] for batch in batches])
            images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            decoded.write_images(folder / f"x_{split}.npy", images.shape, [images], where)
            labels = np.concatenate([batch[files.labels] for batch in batches])
            decoded.write_labels(folder / f"y_{split}.npy", labels)

    return decoded.decoded(root, key, write, where)


def _is_unpacked(files: CifarFiles, root: Path) -> bool:
    """Return whether only the folder exists: an archive is preferred, since it is complete."""
    return (root / files.folder).is_dir() and not (root / files.archive).is_file()


def _verified_batch(files: CifarFiles, root: Path, name: str, md5: str, where: str) -> bytes:
    """Return the bytes of a batch, from the folder or the archive, if they are the published ones.

    Only such bytes may be unpickled: a pickle can run code.
    """
    path, member = root / files.folder / name, f"{files.folder}/{name}"
    try:
        if _is_unpacked(files, root):
            content = path.read_bytes()
        else:
            path = root / files.archive
            with tarfile.open(path) as tar:
                stream = tar.extractfile(member)
                content = stream.read() if stream else b""
    except FileNotFoundError as error:
        raise ConfigError(
            f"{where}: {path} is missing: delete {path.parent} to have the archive downloaded"
        ) from error
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise ConfigError(f"{where}: cannot read {member} in {path}: {error}") from error
    check_md5(hashlib.md5(content).hexdigest(), md5, path, where)
    return content


CIFAR10_FILES = CifarFiles(
    title="CIFAR-10",
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=(
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
    labels="labels",
)
CIFAR100_FILES = CifarFiles(
    title="CIFAR-100",
    archive="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
    test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    labels="fine_labels",
)
CIFAR10 = cifar_source(
    CIFAR10_FILES, (5000,) * 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
)
CIFAR100 = cifar_source(
    CIFAR100_FILES, (500,) * 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
)


class SplitCIFAR10(Split):
    """Split's stream over CIFAR-10: 50000 / 10000 images of 32 x 32 x 3, 10 classes."""

    name = "split_cifar10"
    source = CIFAR10


@dataclass(kw_only=True, eq=False)
class SplitCIFAR100(Split):
    """Split's stream over CIFAR-100's fine labels: 50000 / 10000 images of 32 x 32 x 3."""

    num_tasks: int = 20

    name = "split_cifar100"
    source = CIFAR100

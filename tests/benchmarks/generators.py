"""Tiny data sets in the on-disk layouts of the real ones, drawn from a seed."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seqrun.benchmarks.cifar import CifarFiles
from seqrun.benchmarks.tiny_imagenet import TinyImageNetFiles


def md5(content: bytes) -> str:
    """Return the md5 of bytes."""
    return hashlib.md5(content).hexdigest()


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a smooth (height, width, 3) uint8 image, which JPEG encodes with little loss."""
    y, x = np.mgrid[:height, :width][..., None] / max(height, width)
    phase = rng.uniform(0, 6, (4, 3))
    values = np.sin(5 * y + phase[0]) + np.sin(4 * x + phase[1]) + phase[2] / 6
    return np.clip(60 * values + 100, 0, 255).astype(np.uint8)


def encoded(image: np.ndarray, form: str = "JPEG") -> bytes:
    """Return an image file's bytes."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form)
    return stream.getvalue()


def pixels(content: bytes) -> np.ndarray:
    """Return the pixels of an image file as PIL decodes them, for comparison."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write relative name -> content below a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes], top: str = "") -> Path:
    """Write relative name -> content into an archive, below a top folder if one is named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{top}{name}", content)
    return path


# ---- CIFAR


def cifar_batches(
    per_batch: Mapping[str, int], classes: int, key: str, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return name -> batch in CIFAR's format: "data" (N, 3072) uint8 and a list of labels."""
    rng = np.random.default_rng(seed)
    return {
        name: {
            "batch_label": name,
            "data": rng.integers(0, 256, (number, 3072), np.uint8),
            key: (np.arange(number) % classes).tolist(),
        }
        for name, number in per_batch.items()
    }


def cifar_set(
    root: Path,
    batches: Mapping[str, Any],
    key: str = "labels",
    protocol: int = 2,
    folder: str = "cifar-tiny-py",
    archive: str = "cifar-tiny-python.tar.gz",
) -> CifarFiles:
    """Write an archive of pickled batches; the name of a test batch starts with "test"."""
    contents = {
        name: batch if isinstance(batch, bytes) else pickle.dumps(batch, protocol)
        for name, batch in batches.items()
    }
    root.mkdir(parents=True, exist_ok=True)
    path = root / archive
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    named = [(name, md5(content)) for name, content in contents.items()]
    return CifarFiles(
        title="CIFAR",
        archive=archive,
        md5=md5(path.read_bytes()),
        folder=folder,
        train=tuple(pair for pair in named if not pair[0].startswith("test")),
        test=tuple(pair for pair in named if pair[0].startswith("test")),
        labels=key,
        url="http://127.0.0.1:9/",
    )


# ---- Tiny ImageNet

TINY = {"classes": 4, "train_per_class": 3, "test_per_class": 2}


def tiny_imagenet_tree(seed: int = 0, size: int = 64) -> dict[str, bytes]:
    """Return relative name -> content of a set of 4 classes; ids unsorted, one image grey."""
    rng = np.random.default_rng(seed)
    ids = ["n03", "n01", "n04", "n02"]
    tree = {"wnids.txt": "\n".join(ids).encode() + b"\n", "words.txt": b"n01\tfish\n"}
    for wnid in ids:
        tree[f"train/{wnid}/{wnid}_boxes.txt"] = b"x\n"
        for number in range(TINY["train_per_class"]):
            image = picture(rng, size, size)
            if wnid == "n02" and number == 1:
                image = image[..., 0]
            tree[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = encoded(image)
    lines = []
    for number in range(TINY["classes"] * TINY["test_per_class"]):
        tree[f"val/images/val_{number}.JPEG"] = encoded(picture(rng, size, size))
        lines.append(f"val_{number}.JPEG\t{ids[number % 4]}\t0\t0\t9\t9\n")
    tree["val/val_annotations.txt"] = "".join(lines).encode()
    tree["test/images/test_0.JPEG"] = b"has no label and is not read"
    return tree


def tiny_imagenet_files(archive: bytes = b"") -> TinyImageNetFiles:
    """Return the "published" checksum, URL and counts of the tiny set."""
    return TinyImageNetFiles(md5=md5(archive), url="http://127.0.0.1:9/", **TINY)


# ---- a user's own data


def image_tree(
    classes: tuple[str, ...] = ("cat", "ant", "dog", "bee"),
    train: int = 6,
    test: int = 2,
    size: tuple[int, int] = (8, 10),
    seed: int = 0,
) -> dict[str, bytes]:
    """Return relative name -> content of train/<class>/ and test/<class>/, JPEG and PNG."""
    rng = np.random.default_rng(seed)
    tree = {}
    for split, number in (("train", train), ("test", test)):
        for name in classes:
            for n in range(number):
                form, suffix = [("JPEG", "jpg"), ("PNG", "png"), ("JPEG", "JPEG")][n % 3]
                tree[f"{split}/{name}/{n:04}.{suffix}"] = encoded(picture(rng, *size), form)
    return tree


def npz_arrays(classes: int = 4, shape: tuple[int, ...] = (6, 5, 3), seed: int = 0):
    """Return x_train (24, ...), y_train, x_test (8, ...), y_test."""
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (24, *shape), np.uint8),
        "y_train": np.arange(24) % classes,
        "x_test": rng.integers(0, 256, (8, *shape), np.uint8),
        "y_test": np.arange(8) % classes,
    }

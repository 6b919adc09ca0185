"""Tiny MNIST and CIFAR-100 in their published layouts, in place of the real ones."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.generators import cifar_batches, cifar_set, md5

from seqrun.benchmarks import PermutedMNIST, RotatedMNIST, SplitCIFAR100, mnist
from seqrun.benchmarks.cifar import cifar_source

CLASSES = 10
PER_CLASS = {"train": 40, "t10k": 4}


def install(root: Path, monkeypatch: Any) -> None:
    """Write both sets, of ten classes each, and let the benchmarks take them for the real ones."""
    _install_mnist(root, monkeypatch)
    counts = (PER_CLASS["train"],) * CLASSES
    sizes = {"train": PER_CLASS["train"] * CLASSES, "test": PER_CLASS["t10k"] * CLASSES}
    files = cifar_set(root, cifar_batches(sizes, CLASSES, "fine_labels"), "fine_labels")
    source = cifar_source(files, counts, (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(SplitCIFAR100, "source", source)


def _install_mnist(root: Path, monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    files = []
    for file in mnist._FILES:
        number = PER_CLASS[file.name.partition("-")[0]] * CLASSES
        shape = (number, *file.shape[1:])
        values = np.arange(number) % CLASSES
        if len(shape) > 1:
            values = rng.integers(0, 256, shape)
        head = np.array([0, *shape], ">u4").tobytes()  # the magic number is not looked at
        stored = gzip.compress(head + values.astype(np.uint8).tobytes())
        (raw / f"{file.name}.gz").write_bytes(stored)
        files.append(file._replace(archive_md5=md5(stored), shape=shape))
    monkeypatch.setattr(mnist, "_FILES", tuple(files))
    source = replace(mnist.MNIST, train_counts=(PER_CLASS["train"],) * CLASSES)
    for benchmark in (PermutedMNIST, RotatedMNIST):
        monkeypatch.setattr(benchmark, "source", source)

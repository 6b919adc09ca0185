"""Digits: the 8 x 8 digits that come with scikit-learn; no download."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from seqrun.benchmarks.source import ImageSource, RawImages
from seqrun.checks import ConfigError

_MD5 = "4d034029885394119b9a7cabcfb5edeb"


def load_digits(data_dir: str | Path | None = None) -> RawImages:
    """Load 1440 training and 357 test images of 10 classes, grey levels 0..16 scaled to 0..255.

    Every fifth group of ten consecutive samples is for testing. Such groups have about one sample
    of each class, so that both parts are balanced.

    Args:
        data_dir: ignored; the data come with scikit-learn.

    Raises:
        ConfigError: scikit-learn's data have an unknown checksum.
    """
    # Only the file is read: importing scikit-learn takes longer than a run on its digits.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError("benchmark: scikit-learn, which holds the digits, is not installed")
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    x = np.rint(table[:, :-1] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    y = table[:, -1].astype(np.uint8)
    found = hashlib.md5(x.tobytes() + y.tobytes()).hexdigest()
    if found != _MD5:
        raise ConfigError(
            f"benchmark: scikit-learn's digits have md5 {found}, must be {_MD5}: "
            "install an unmodified scikit-learn"
        )
    x = x[..., None]
    y = y.astype(np.int32)
    test = np.arange(len(y)) // 10 % 5 == 4
    return RawImages(x[~test], y[~test], x[test], y[test])


def _check(data_dir: str | Path | None) -> None:
    """Do nothing: the data come with scikit-learn and are verified when loaded."""


DIGITS = ImageSource(
    input_shape=(8, 8, 1),
    train_counts=(143, 145, 143, 146, 147, 149, 145, 144, 135, 143),
    mean=(0.3051,),
    std=(0.3758,),
    checksum=_MD5,
    check=_check,
    load=load_digits,
)

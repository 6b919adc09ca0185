"""The mean and the standard deviation that inputs are normalised by: given, known or measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seqrun.benchmarks.source import ImageSource
from seqrun.benchmarks.tasks import Transform
from seqrun.checks import ConfigError, at_least, finite

_BLOCK_VALUES = 1 << 22  # read at once: a memory map is never held whole
_measured: dict[tuple[str, tuple[int, ...]], Transform] = {}


def stated_transform(
    normalize: bool,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    source: ImageSource | None,
) -> Transform:
    """Return how inputs are made, as far as it is known before the data are loaded.

    Raises:
        ConfigError: `mean` or `std` alone, without `normalize`, or not numbers; neither is given
            and there is no source to know them.
    """
    given = {"mean": mean, "std": std}
    for key, values in given.items():
        if values is None:
            continue
        if not normalize:
            raise ConfigError(
                f"benchmark.{key}={values!r}: must be null unless benchmark.normalize=true"
            )
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(
                f"benchmark.{key}={values!r}: must be null or a list with one number per channel"
            )
        for value in values:
            finite(f"benchmark.{key}", value)
    if not normalize:
        return Transform()
    for value in std or ():
        at_least("benchmark.std", value, 0, strictly=True)
    for key, other in (("mean", std), ("std", mean)):
        if given[key] is None and other is not None:
            raise ConfigError(f"benchmark.{key}=None: must be given with benchmark.mean or .std")
    if mean is not None and std is not None:
        return Transform(tuple(mean), tuple(std))
    if source is None:
        raise ConfigError(
            "benchmark.normalize=True: must be false or come with benchmark.mean and "
            "benchmark.std, since this benchmark states neither"
        )
    return Transform(source.mean, source.std)


def check_channels(transform: Transform, channels: int) -> None:
    """Raise ConfigError unless the transform has a number for each channel."""
    for key, values in transform._asdict().items():
        if values is not None and len(values) != channels:
            raise ConfigError(
                f"benchmark.{key}={list(values)}: must have one number per channel, {channels}"
            )


def measured_of(checksum: str, images: np.ndarray) -> Transform:
    """Return `measured_transform`, computed once for data of one checksum ("" = not known)."""
    if not checksum:
        return measured_transform(images)
    key = checksum, images.shape  # which resizing changes
    if key not in _measured:
        _measured[key] = measured_transform(images)
    return _measured[key]


def measured_transform(images: np.ndarray) -> Transform:
    """Return the mean and the standard deviation of each channel, of pixels scaled to [0, 1].

    The sums are of integers and exact, whatever the number of images.

    Args:
        images: (N, H, W, C) uint8, N >= 1; may be a memory map.

    Raises:
        ConfigError: a channel in which all pixels are equal.
    """
    count, height, width, channels = images.shape
    total = [0] * channels
    squares = [0] * channels
    step = max(1, _BLOCK_VALUES // (height * width * channels))
    for start in range(0, count, step):
        block = np.asarray(images[start : start + step]).reshape(-1, channels)
        of_squares = np.square(block, dtype=np.uint16)
        for channel in range(channels):
            total[channel] += int(block[:, channel].sum(dtype=np.int64))
            squares[channel] += int(of_squares[:, channel].sum(dtype=np.int64))
    pixels = count * height * width
    variances = [pixels * q - t * t for t, q in zip(total, squares, strict=True)]
    if not all(variances):
        raise ConfigError(
            "benchmark.normalize=True: must be false, since all training pixels of channel "
            f"{variances.index(0)} are equal"
        )
    return Transform(
        tuple(t / pixels / 255 for t in total),
        tuple(math.sqrt(v) / pixels / 255 for v in variances),
    )

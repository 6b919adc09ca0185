"""Mean and standard deviation for normalising inputs: given, stated by the source, or measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seqrun.benchmarks.source import ImageSource
from seqrun.benchmarks.tasks import Transform
from seqrun.checks import ConfigError, at_least, finite

_BLOCK_VALUES = 1 << 22  # read at once, so that a memory map is never loaded whole
_measured: dict[tuple[str, tuple[int, ...]], Transform] = {}


def stated_transform(
    normalize: bool,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    source: ImageSource | None,
) -> Transform:
    """Return the transform of inputs, as far as it is known before the data are loaded.

    Raises:
        ConfigError: only one of `mean` and `std` is given, either without `normalize`, not numbers,
            or neither is given and there is no source.
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
    """Raise ConfigError unless the transform has one number per channel."""
    for key, values in transform._asdict().items():
        if values is not None and len(values) != channels:
            raise ConfigError(
                f"benchmark.{key}={list(values)}: must have one number per channel, {channels}"
            )


def measured_of(checksum: str, images: np.ndarray) -> Transform:
    """Return `measured_transform`, computed once per checksum of the data ("" = not known)."""
    if not checksum:
        return measured_transform(images)
    key = checksum, images.shape  # the shape depends on resizing
    if key not in _measured:
        _measured[key] = measured_transform(images)
    return _measured[key]


def measured_transform(images: np.ndarray) -> Transform:
    """Return mean and standard deviation of each channel, for pixels scaled to [0, 1].

    The sums are exact, since they are sums of integers.

    Args:
        images: (N, H, W, C) uint8, N >= 1; may be a memory map.

    Raises:
        ConfigError: all pixels of a channel are equal.
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

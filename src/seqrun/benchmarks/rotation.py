"""Rotation of many images at once, identical to PIL's rotation of each to the bit.

Source of the arithmetic: Pillow, `Image.rotate` and `libImaging/Geometry.c` (which
`torchvision.transforms.functional.rotate` calls for PIL images). The source of an output pixel
depends only on the angle, so images are stored pixel-major, and an output pixel of all images is
computed from four rows.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

INTERPOLATIONS = ("bilinear", "nearest")

_BLOCK_VALUES = 1 << 8  # images x channels per block
_BLOCK_PIXELS = 1 << 7  # output pixels per block: with the above, buffers stay in the L2 cache
_THREADS = 2


def rotate(images: np.ndarray, angle: float, interpolation: str = "bilinear") -> np.ndarray:
    """Rotate images about their centre, counter-clockwise, keeping their size, filling with 0.

    Args:
        images: (N, H, W, C) uint8, H and W at most 16384.
        angle: degrees, any finite number.
        interpolation: "bilinear" or "nearest".

    Returns:
        (N, H, W, C) uint8, a new array.

    Raises:
        ValueError: another shape, dtype or interpolation.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or max(images.shape[1:3]) > 16384:
        raise ValueError(f"images must be (N, H, W, C) uint8, got {images.shape} {images.dtype}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={interpolation!r}: must be one of {INTERPOLATIONS}")
    height, width = images.shape[1:3]
    angle = angle % 360.0
    if angle in (0.0, 180.0) or (angle in (90.0, 270.0) and height == width):
        return np.rot90(images, int(angle) // 90, axes=(1, 2)).copy()
    matrix = _inverse_matrix(angle, height, width)
    if interpolation == "nearest":
        return _nearest(images, matrix)
    return _bilinear(images, matrix)


def _inverse_matrix(angle: float, height: int, width: int) -> tuple[float, ...]:
    """Return a, b, c, d, e, f of x_in = a x + b y + c, y_in = d x + e y + f (as Image.rotate)."""
    radians = -math.radians(angle)
    a = e = round(math.cos(radians), 15)
    b = round(math.sin(radians), 15)
    d = round(-math.sin(radians), 15)
    x, y = width / 2, height / 2
    c = a * -x + b * -y + 0.0 + x
    f = d * -x + e * -y + 0.0 + y
    return a, b, c, d, e, f


def _nearest(images: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
    """Sample the nearest pixel, in Pillow's 16.16 fixed-point arithmetic."""
    count, height, width, channels = images.shape
    a, b, c, d, e, f = matrix

    def fix(value: float) -> int:
        return math.floor(value * 65536.0 + 0.5)

    column = np.arange(width, dtype=np.int64)
    row = np.arange(height, dtype=np.int64)[:, None]
    x = (fix(c + a * 0.5 + b * 0.5) + row * fix(b) + column * fix(a)) >> 16
    y = (fix(f + d * 0.5 + e * 0.5) + row * fix(e) + column * fix(d)) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = np.where(inside, y * width + x, 0).ravel()
    rotated = images.reshape(count, height * width, channels).take(source, axis=1)
    rotated[:, ~inside.ravel()] = 0
    return rotated.reshape(images.shape)


def _bilinear(images: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
    """Interpolate linearly in x, then in y, in float64, and truncate."""
    count, height, width, channels = images.shape
    a, b, c, d, e, f = matrix
    column = np.arange(width) + 0.5
    row = np.arange(height)[:, None] + 0.5
    x = (a * column + b * row + c).ravel()
    y = (d * column + e * row + f).ravel()
    target = np.flatnonzero((x >= 0.0) & (x < width) & (y >= 0.0) & (y < height))
    x, y = x[target] - 0.5, y[target] - 0.5
    left, top = np.floor(x), np.floor(y)
    dx, dy = (x - left)[:, None], (y - top)[:, None]
    # Neighbours outside the image are replaced by border pixels, so that the difference is 0.
    x0, x1 = (np.clip(left + step, 0, width - 1).astype(np.intp) for step in (0, 1))
    y0, y1 = (np.clip(top + step, 0, height - 1).astype(np.intp) for step in (0, 1))
    neighbours = [y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1]
    pieces = [
        (target[p], [n[p] for n in neighbours], dx[p], dy[p])
        for p in (slice(s, s + _BLOCK_PIXELS) for s in range(0, len(target), _BLOCK_PIXELS))
    ]
    pixels = height * width
    flat = images.reshape(count, pixels, channels)
    rotated = np.zeros_like(flat)
    step = max(1, _BLOCK_VALUES // channels)

    def work(first: int) -> None:
        source = np.empty((pixels, step * channels))
        result = np.zeros((pixels, step * channels), np.uint8)
        buffers = np.empty((4, _BLOCK_PIXELS, step * channels))
        for start in range(first * step, count, _THREADS * step):
            block = flat[start : start + step]
            values = len(block) * channels
            by_pixel = source[:, :values]
            by_pixel.reshape(pixels, len(block), channels)[:] = block.transpose(1, 0, 2)
            for where, rows, dx, dy in pieces:
                tl, tr, bl, br = buffers[:, : len(where), :values]
                for buffer, index in zip((tl, tr, bl, br), rows, strict=True):
                    np.take(by_pixel, index, axis=0, out=buffer, mode="clip")
                _lerp(tl, tr, dx)
                _lerp(bl, br, dx)
                _lerp(tl, bl, dy)
                result[where, :values] = tl
            turned = result[:, :values].reshape(pixels, len(block), channels)
            rotated[start : start + step] = turned.transpose(1, 0, 2)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(work, range(_THREADS)))
    return rotated.reshape(images.shape)


def _lerp(start: np.ndarray, end: np.ndarray, weight: np.ndarray) -> None:
    """Write start + (end - start) * weight to `start`; `end` is overwritten."""
    np.subtract(end, start, out=end)
    np.multiply(end, weight, out=end)
    np.add(start, end, out=start)

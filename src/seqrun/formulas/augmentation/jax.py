"""Crops and flips in JAX."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def augmented(images: Array, index: Array, offsets: Array, padding: int) -> Array:
    """Return samples of a data set, each cropped and flipped by its own offsets.

    Args:
        images: (N, H, W, C) uint8.
        index: (B,) rows of `images`.
        offsets: (B, 3) integers: dy and dx in [0, 2 padding], flip in {0, 1}.
        padding: black pixels on each side, >= 0.

    Returns:
        (B, H, W, C) uint8.
    """
    height, width = images.shape[1:3]
    dy, dx, flip = (column[:, None] for column in offsets.T)
    row = jnp.arange(height) + dy - padding
    column = jnp.arange(width)
    column = jnp.where(flip == 1, width - 1 - column, column) + dx - padding
    # One gather of pixels is faster than slices: XLA fuses it with the operations that follow.
    rows = row.clip(0, height - 1)[:, :, None]
    x = images[index[:, None, None], rows, column.clip(0, width - 1)[:, None]]
    inside = ((row >= 0) & (row < height))[:, :, None]
    inside &= ((column >= 0) & (column < width))[:, None]
    return jnp.where(inside[..., None], x, 0)

"""Crops and flips in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def augmented(images: Tensor, index: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Return samples of a data set, each cropped and flipped by its own offsets.

    Args:
        images: (N, H, W, C) uint8.
        index: (B,) rows of `images`.
        offsets: (B, 3) integers: dy and dx in [0, 2 padding], flip in {0, 1}.
        padding: black pixels on each side, >= 0.

    Returns:
        (B, H, W, C) uint8.
    """
    height, width, channels = images.shape[1:]
    dy, dx, flip = offsets.long().unbind(1)
    row = torch.arange(height, device=images.device) + (dy - padding)[:, None]
    offset = torch.arange(width * channels, device=images.device)  # within a row of pixels
    channel, column = offset % channels, offset // channels
    column = torch.where(flip[:, None] == 1, width - 1 - column, column) + (dx - padding)[:, None]
    # Gathering whole rows first, then pixels from them, is faster on a CPU than pixel by pixel.
    rows = index.long()[:, None] * height + row.clamp(0, height - 1)
    x = images.reshape(-1, width * channels).index_select(0, rows.flatten())
    offset = column.clamp(0, width - 1) * channels + channel
    x = x.view(len(index), height, width * channels)
    x = x.gather(2, offset[:, None].expand(-1, height, -1))
    x *= ((row >= 0) & (row < height))[:, :, None]
    x *= ((column >= 0) & (column < width))[:, None]
    return x.view(len(index), height, width, channels)

"""Crops and flips of stored images, with planned offsets, in torch.py and jax.py.

A crop with padding p takes the H x W pixels that start at row dy and column dx of the image with p
black pixels added on each side; a flip then mirrors the result left to right. Pixel (i, j) of the
result is pixel (i + dy - p, k + dx - p) of the image, where k is j, or W - 1 - j if flipped; pixels
outside the image are 0.
"""

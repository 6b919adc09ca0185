"""Random crops and flips of stored images, by planned offsets, in torch.py and jax.py.

A crop with padding p takes H x W pixels, from row dy and column dx on, of the image with p black
pixels added on each side; a flip then turns the result left to right. Pixel (i, j) of the result is
pixel (i + dy - p, k + dx - p) of the image, where k is j, or W - 1 - j if flipped; 0 outside.
"""

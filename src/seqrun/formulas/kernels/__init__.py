"""Kernels, kernel ridge regression and the KL divergence, in torch.py and jax.py."""

KERNELS = ("rff", "rbf", "linear", "poly")
"""Kernels of two rows a and b of d features. "linear": a.b; "rff": a.b of their random Fourier
features; "rbf": exp(-RBF_RATE |a - b|^2); "poly": (a.b / d + 1)^POLY_DEGREE."""
RBF_RATE = 0.25
POLY_DEGREE = 3
SCALINGS = ("min_max", "authors", "l2")
"""How features are scaled: by a given range, by their own range, or each row to length 1."""

"""Kernels, their ridge regression, and the divergence of Gaussians, in torch.py and jax.py."""

KERNELS = ("rff", "rbf", "linear", "poly")
"""Kernels of rows a and b with d features: "rff", "linear": a b (of Fourier features or of the
features themselves); "rbf": exp(-RBF_RATE |a - b|^2); "poly": (a b / d + 1)^POLY_DEGREE."""
RBF_RATE = 0.25
POLY_DEGREE = 3
SCALINGS = ("min_max", "authors", "l2")
"""Of features: by a given range, by their own, or each row to length 1."""

"""Backbones: what is one for both frameworks; the networks themselves are in torch.py and jax.py.

Parameters have one canonical name and layout on both backends: dense kernels (in, out),
convolution kernels HWIO, names such as "hidden_0/kernel".
"""

from seqrun.backbones.base import BaseBackbone, MLPOptions, draw_initial_weights

__all__ = ["BaseBackbone", "MLPOptions", "draw_initial_weights"]

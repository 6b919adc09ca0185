"""Canonical names and layouts of parameters, the same on both backends, in torch.py and jax.py.

Dense kernels are (in, out), convolution kernels HWIO; a name is the path of the layer and the
leaf, such as "hidden_0/kernel".
"""

"""Canonical names and layouts of parameters, the same on both backends, in torch.py and jax.py.

Dense kernels are (in, out), convolution kernels HWIO. A name is the path of the layer and the
name of the parameter in it, such as "hidden_0/kernel".
"""

"""Pure functions shared by several algorithms, in torch.py and jax.py."""

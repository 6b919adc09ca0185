"""Pure functions that several algorithms share, in torch.py and jax.py."""

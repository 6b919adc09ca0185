"""Pure formulas that several algorithms share, in torch.py and jax.py."""

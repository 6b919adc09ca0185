"""seqrun: a Hydra-first experiment runner for continual learning on PyTorch and JAX."""

__version__ = "0.1.0"

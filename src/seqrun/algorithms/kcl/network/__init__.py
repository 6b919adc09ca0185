"""What KCL trains: the backbone's encoder, two amortised networks, and three scalars per task."""

SCALARS = ("lambda", "gamma", "beta")
"""Names of the (T,) parameters: regularisation, scale and offset of each task's predictions."""
LAYERS = 3
"""Linear layers of each network that maps a mean feature to a mean or log variance of bases."""

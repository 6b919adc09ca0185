"""KCL's network: the backbone's encoder, two amortised networks, and three scalars per task."""

SCALARS = ("lambda", "gamma", "beta")
"""Names of the (T,) parameters: regularisation, scale and offset of each task's predictions."""
LAYERS = 3
"""Linear layers between a mean feature and the mean, or the log variance, of the bases."""

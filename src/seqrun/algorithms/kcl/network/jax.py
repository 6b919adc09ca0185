"""KCL's network on JAX."""

from __future__ import annotations

from flax import linen as nn
from jax import Array

from seqrun.algorithms.kcl.network import LAYERS, SCALARS


class LinearLayers(nn.Module):
    """Linear layers from (d,) to (d,) with ELU between them."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (d,) to (d,)."""
        features = x.shape[-1]
        x = nn.Dense(features, name="linear_0")(x)
        for i in range(1, LAYERS):
            x = nn.Dense(features, name=f"linear_{i}")(nn.elu(x))
        return x


class Amortised(nn.Module):
    """Map a mean feature (d,) to the mean and log variance (d,) of the bases."""

    def setup(self) -> None:
        """Declare the two networks."""
        self.mean = LinearLayers()
        self.log_variance = LinearLayers()

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Return mean and log variance."""
        return self.mean(x), self.log_variance(x)


class KCLNetwork(nn.Module):
    """An encoder, networks for posterior and prior if there are bases, and the scalars."""

    encoder: nn.Module
    num_tasks: int
    has_bases: bool

    def setup(self) -> None:
        """Declare everything but the encoder."""
        if self.has_bases:
            self.posterior = Amortised()
            self.prior = Amortised()
        for name in SCALARS:
            self.param(name, nn.initializers.zeros, (self.num_tasks,))

    def encode(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to features (B, d)."""
        return self.encoder.encode(x, train)

    def __call__(self, x: Array) -> Array:
        """Call every part once, so that flax creates all parameters."""
        features = self.encode(x)
        if self.has_bases:
            self.posterior(features.mean(0))
            self.prior(features.mean(0))
        return features

"""Backbones for JAX (flax.linen), and the map between nested and canonical flat parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.typing import ArrayLike

from seqrun.backbones.base import MLPOptions


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with torch's conventions.

    flax's own keeps the biased running variance; this one the unbiased, with momentum 0.1.
    """

    momentum: float = 0.1
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalise (..., C) by the batch if `train`, else by the running statistics."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            n = x.size // channels
            mean, var = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                m = self.momentum
                running_mean.value = (1 - m) * running_mean.value + m * mean
                running_var.value = (1 - m) * running_var.value + m * var * (n / (n - 1))
        return (x - mean) * jax.lax.rsqrt(var + self.eps) * scale + bias


class MLPModule(nn.Module):
    """The network that MLPOptions describes."""

    width: int
    n_hidden_layers: int
    dropout: float
    batch_norm: bool
    num_classes: int

    def setup(self) -> None:
        """Declare the layers under their canonical names."""
        for i in range(self.n_hidden_layers):
            setattr(self, f"hidden_{i}", nn.Dense(self.width))
            if self.batch_norm:
                setattr(self, f"norm_{i}", BatchNorm())
        self.classifier = nn.Dense(self.num_classes)
        self.drop = nn.Dropout(self.dropout)

    def encode(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to the classifier's input (B, width)."""
        x = x.reshape(x.shape[0], -1)
        for i in range(self.n_hidden_layers):
            x = getattr(self, f"hidden_{i}")(x)
            if self.batch_norm:
                x = getattr(self, f"norm_{i}")(x, train)
            x = self.drop(nn.relu(x), deterministic=not train)
        return x

    def classify(self, features: Array) -> Array:
        """Map (B, width) to logits (B, num_classes)."""
        return self.classifier(features)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to logits (B, num_classes)."""
        return self.classify(self.encode(x, train))


@dataclass(kw_only=True, eq=False)
class MLP(MLPOptions):
    """A multi-layer perceptron."""

    backend: ClassVar[str] = "jax"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Return the module for (H, W, C) inputs."""
        return MLPModule(
            self.width, self.n_hidden_layers, self.dropout, self.batch_norm, num_classes
        )


def flat(tree: Any) -> dict[str, Array]:
    """Return a nested dictionary of arrays as canonical name -> array."""
    return flatten_dict(tree, sep="/")


def nested(arrays: dict[str, Array]) -> Any:
    """Undo `flat`."""
    return unflatten_dict(arrays, sep="/")


def normalised_inputs(x: Array, mean: ArrayLike | None, std: ArrayLike | None) -> Array:
    """Map uint8 images to float32 network inputs: (x / 255 - mean) / std."""
    x = x.astype(jnp.float32) / 255
    return x if mean is None else (x - mean) / std

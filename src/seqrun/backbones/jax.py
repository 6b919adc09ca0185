"""Backbones for JAX (flax.linen)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike

from seqrun.backbones.base import MLPOptions
from seqrun.formulas.layers.jax import BatchNorm

__all__ = ["BatchNorm", "MLP", "MLPModule", "normalised_inputs"]


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
        return MLPModule(
            self.width, self.n_hidden_layers, self.dropout, self.batch_norm, num_classes
        )


def normalised_inputs(x: Array, mean: ArrayLike | None, std: ArrayLike | None) -> Array:
    """Map uint8 images to float32 network inputs: (x / 255 - mean) / std."""
    x = x.astype(jnp.float32) / 255
    return x if mean is None or std is None else (x - mean) / std

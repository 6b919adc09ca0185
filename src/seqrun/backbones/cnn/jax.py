"""Convolutional networks for JAX (flax.linen)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from seqrun.backbones.cnn import CNNOptions, LaMAMLCNNOptions
from seqrun.backbones.jax import BatchNorm


class CNNModule(nn.Module):
    """The network that CNNOptions describes."""

    channels: tuple[int, ...]
    kernel_size: int
    stride: int
    pool: int
    hidden: tuple[int, ...]
    dropout: float
    batch_norm: bool
    num_classes: int

    def setup(self) -> None:
        """Declare the layers under their canonical names."""
        side, pad = self.kernel_size, self.kernel_size // 2
        for i, channels in enumerate(self.channels):
            conv = nn.Conv(
                channels,
                (side, side),
                strides=self.stride,
                padding=((pad, pad), (pad, pad)),
                use_bias=not self.batch_norm,
            )
            setattr(self, f"conv_{i}", conv)
            if self.batch_norm:
                setattr(self, f"norm_{i}", BatchNorm())
        for i, units in enumerate(self.hidden):
            setattr(self, f"hidden_{i}", nn.Dense(units))
        self.classifier = nn.Dense(self.num_classes)
        self.drop = nn.Dropout(self.dropout)

    def encode(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to the classifier's input (B, features)."""
        for i in range(len(self.channels)):
            x = getattr(self, f"conv_{i}")(x)
            if self.batch_norm:
                x = getattr(self, f"norm_{i}")(x, train)
            x = max_pool(nn.relu(x), self.pool)
        x = x.reshape(len(x), -1)
        for i in range(len(self.hidden)):
            x = nn.relu(getattr(self, f"hidden_{i}")(x))
            x = self.drop(x, deterministic=not train)
        return x

    def classify(self, features: Array) -> Array:
        """Map (B, features) to logits (B, num_classes)."""
        return self.classifier(features)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to logits (B, num_classes)."""
        return self.classify(self.encode(x, train))


@dataclass(kw_only=True, eq=False)
class CNN(CNNOptions):
    """A small convolutional network: convolutions with max pooling, then dense layers."""

    backend: ClassVar[str] = "jax"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        self.check_input(input_shape)
        return CNNModule(
            tuple(self.channels),
            self.kernel_size,
            self.stride,
            self.pool,
            tuple(self.hidden),
            self.dropout,
            self.batch_norm,
            num_classes,
        )


@dataclass(kw_only=True, eq=False)
class LaMAMLCNN(LaMAMLCNNOptions, CNN):
    """The convolutional network of the La-MAML paper (Gupta et al. 2020)."""


def max_pool(x: Array, side: int) -> Array:
    """Return the maxima (B, H // side, W // side, C) of windows of `side` x `side`.

    If several values are largest, the gradient goes to the first in row-major order, as in torch;
    JAX's own max pool would split it. An elementwise maximum of slices is also fast on a CPU.
    """
    height, width = (n // side * side for n in x.shape[1:3])
    x = x[:, :height, :width]
    corners = [x[:, i::side, j::side] for i in range(side) for j in range(side)]
    largest = corners[0]
    for other in corners[1:]:
        largest = jnp.where(other > largest, other, largest)
    return largest

"""ResNet-18 for JAX (flax.linen)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flax import linen as nn
from jax import Array

from seqrun.backbones.jax import BatchNorm
from seqrun.backbones.resnet import STRIDES, ResNet18Options, ResNet18ThinOptions, block_channels


class Block(nn.Module):
    """A basic block."""

    channels_in: int
    channels: int
    stride: int
    dropout: float

    def setup(self) -> None:
        """Declare the layers under their canonical names."""
        self.conv_0 = _conv(self.channels, 3, self.stride)
        self.norm_0 = BatchNorm()
        self.conv_1 = _conv(self.channels, 3, 1)
        self.norm_1 = BatchNorm()
        if self.changes_shape:
            self.shortcut = _conv(self.channels, 1, self.stride)
            self.shortcut_norm = BatchNorm()
        self.drop = nn.Dropout(self.dropout)

    @property
    def changes_shape(self) -> bool:
        """Whether the shortcut needs a convolution."""
        return self.stride != 1 or self.channels_in != self.channels

    def __call__(self, x: Array, train: bool) -> Array:
        """Map (B, H, W, C) to (B, H / stride, W / stride, channels)."""
        out = nn.relu(self.norm_0(self.conv_0(x), train))
        out = self.drop(out, deterministic=not train)
        out = self.norm_1(self.conv_1(out), train)
        x = self.shortcut_norm(self.shortcut(x), train) if self.changes_shape else x
        return self.drop(nn.relu(out + x), deterministic=not train)


class ResNet18Module(nn.Module):
    """The network that ResNet18Options describes."""

    nf: int
    dropout: float
    num_classes: int

    def setup(self) -> None:
        """Declare the layers under their canonical names."""
        self.stem = _conv(self.nf, 3, 1)
        self.stem_norm = BatchNorm()
        channels = self.nf
        for i, (width, stride) in enumerate(zip(block_channels(self.nf), STRIDES, strict=True)):
            setattr(self, f"block_{i}", Block(channels, width, stride, self.dropout))
            channels = width
        self.classifier = nn.Dense(self.num_classes)

    def encode(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to the classifier's input (B, 8 nf)."""
        x = nn.relu(self.stem_norm(self.stem(x), train))
        for i in range(len(STRIDES)):
            x = getattr(self, f"block_{i}")(x, train)
        return x.mean((1, 2))

    def classify(self, features: Array) -> Array:
        """Map (B, 8 nf) to logits (B, num_classes)."""
        return self.classifier(features)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to logits (B, num_classes)."""
        return self.classify(self.encode(x, train))


@dataclass(kw_only=True, eq=False)
class ResNet18(ResNet18Options):
    """ResNet-18 for small images: 3 x 3 stem of stride 1, no pooling before the blocks."""

    backend: ClassVar[str] = "jax"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ResNet18Module(self.nf, self.dropout, num_classes)


@dataclass(kw_only=True, eq=False)
class ResNet18Thin(ResNet18ThinOptions, ResNet18):
    """The reduced ResNet-18 of GEM and A-GEM, with 20 channels in its first stage."""


def _conv(channels: int, side: int, stride: int) -> nn.Conv:
    pad = (side // 2, side // 2)
    return nn.Conv(channels, (side, side), strides=stride, padding=(pad, pad), use_bias=False)

"""ResNet-18 for PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrun.backbones.resnet import STRIDES, ResNet18Options, ResNet18ThinOptions, block_channels

FEW_CHANNELS = 8


class Block(nn.Module):
    """A basic block."""

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm_0 = nn.BatchNorm2d(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(channels)
        self.changes_shape = stride != 1 or channels_in != channels
        if self.changes_shape:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(channels)
        # Without AVX-512, torch's strided channels-last convolution of few input channels writes
        # out of bounds. The input is therefore subsampled, and the convolution has stride 1.
        avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
        self.subsampling = stride if channels_in < FEW_CHANNELS and not avx512 else 1
        if self.changes_shape and self.subsampling > 1:
            self.shortcut.stride = (1, 1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, channels, H / stride, W / stride)."""
        out = self._dropped(self.norm_0(self.conv_0(x)).relu())
        out = self.norm_1(self.conv_1(out))
        if self.subsampling > 1:
            x = x[:, :, :: self.subsampling, :: self.subsampling]
        x = self.shortcut_norm(self.shortcut(x)) if self.changes_shape else x
        return self._dropped((out + x).relu())

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class ResNet18Module(nn.Module):
    """The network that ResNet18Options describes."""

    def __init__(self, options: ResNet18Options, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, options.nf, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(options.nf)
        channels = options.nf
        self._blocks = []
        for i, (width, stride) in enumerate(zip(block_channels(options.nf), STRIDES, strict=True)):
            block = Block(channels, width, stride, options.dropout)
            self.add_module(f"block_{i}", block)
            self._blocks.append(block)
            channels = width
        self.classifier = nn.Linear(channels, num_classes)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the classifier's input (B, 8 nf)."""
        x = self.stem_norm(self.stem(x.permute(0, 3, 1, 2))).relu()
        for block in self._blocks:
            x = block(x)
        return x.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Map (B, 8 nf) to logits (B, num_classes)."""
        return self.classifier(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to logits (B, num_classes)."""
        return self.classify(self.encode(x))


@dataclass(kw_only=True, eq=False)
class ResNet18(ResNet18Options):
    """ResNet-18 for small images: 3 x 3 stem of stride 1, no pooling before the blocks."""

    backend: ClassVar[str] = "torch"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ResNet18Module(self, input_shape[2], num_classes)


@dataclass(kw_only=True, eq=False)
class ResNet18Thin(ResNet18ThinOptions, ResNet18):
    """The reduced ResNet-18 of GEM and A-GEM, with 20 channels in its first stage."""

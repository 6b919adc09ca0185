"""Backbones for PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seqrun.backbones.base import MLPOptions


class MLPModule(nn.Module):
    """The network that MLPOptions describes."""

    def __init__(self, options: MLPOptions, in_features: int, num_classes: int) -> None:
        super().__init__()
        layers = []
        for i in range(options.n_hidden_layers):
            block: list[nn.Module] = [nn.Linear(in_features, options.width)]
            self.add_module(f"hidden_{i}", block[0])
            if options.batch_norm:
                norm = nn.BatchNorm1d(options.width)
                self.add_module(f"norm_{i}", norm)
                block.append(norm)
            layers.append(block)
            in_features = options.width
        self.classifier = nn.Linear(in_features, num_classes)
        self._layers = layers
        self._dropout = options.dropout

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the classifier's input (B, width)."""
        x = x.flatten(1)
        for block in self._layers:
            for layer in block:
                x = layer(x)
            x = x.relu()
            if self._dropout:
                x = nn.functional.dropout(x, self._dropout, self.training)
        return x

    def classify(self, features: Tensor) -> Tensor:
        """Map (B, width) to logits (B, num_classes)."""
        return self.classifier(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to logits (B, num_classes)."""
        return self.classify(self.encode(x))


@dataclass(kw_only=True, eq=False)
class MLP(MLPOptions):
    """A multi-layer perceptron."""

    backend: ClassVar[str] = "torch"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return MLPModule(self, input_shape[0] * input_shape[1] * input_shape[2], num_classes)


class Encoder(nn.Module):
    """Wrap a module's `encode` as a module, for torch.func.functional_call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the classifier's input."""
        encode: Any = self.module.encode
        return encode(x)


def normalised_inputs(x: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Map uint8 images to float32 network inputs: (x / 255 - mean) / std."""
    x = x.to(torch.float32) / 255
    return x if mean is None or std is None else (x - mean) / std

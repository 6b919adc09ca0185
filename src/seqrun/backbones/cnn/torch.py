"""Convolutional networks for PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from seqrun.backbones.cnn import CNNOptions, LaMAMLCNNOptions


class CNNModule(nn.Module):
    """The network that CNNOptions describes."""

    def __init__(
        self, options: CNNOptions, input_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        self._options = options
        self._blocks: list[list[nn.Module]] = []
        features = input_shape[2]
        for i, channels in enumerate(options.channels):
            conv = nn.Conv2d(
                features,
                channels,
                options.kernel_size,
                stride=options.stride,
                padding=options.kernel_size // 2,
                bias=not options.batch_norm,
            )
            self.add_module(f"conv_{i}", conv)
            self._blocks.append([conv])
            if options.batch_norm:
                norm = nn.BatchNorm2d(channels)
                self.add_module(f"norm_{i}", norm)
                self._blocks[-1].append(norm)
            features = channels
        height, width = options.map_sizes(input_shape)[-1]
        features *= height * width
        self._hidden: list[nn.Module] = []
        for i, units in enumerate(options.hidden):
            dense = nn.Linear(features, units)
            self.add_module(f"hidden_{i}", dense)
            self._hidden.append(dense)
            features = units
        self.classifier = nn.Linear(features, num_classes)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the classifier's input (B, features)."""
        x = x.permute(0, 3, 1, 2)
        for block in self._blocks:
            for layer in block:
                x = layer(x)
            x = x.relu()
            if self._options.pool > 1:
                x = F.max_pool2d(x, self._options.pool)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for dense in self._hidden:
            x = dense(x).relu()
            if self._options.dropout:
                x = F.dropout(x, self._options.dropout, self.training)
        return x

    def classify(self, features: Tensor) -> Tensor:
        """Map (B, features) to logits (B, num_classes)."""
        return self.classifier(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to logits (B, num_classes)."""
        return self.classify(self.encode(x))


@dataclass(kw_only=True, eq=False)
class CNN(CNNOptions):
    """A small convolutional network: convolutions with max pooling, then dense layers."""

    backend: ClassVar[str] = "torch"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        self.check_input(input_shape)
        return CNNModule(self, input_shape, num_classes)


@dataclass(kw_only=True, eq=False)
class LaMAMLCNN(LaMAMLCNNOptions, CNN):
    """The convolutional network of the La-MAML paper (Gupta et al. 2020)."""

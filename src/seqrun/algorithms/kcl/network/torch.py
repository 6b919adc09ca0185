"""KCL's network on PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqrun.algorithms.kcl.network import LAYERS, SCALARS


class LinearLayers(nn.Module):
    """Linear layers from (d,) to (d,) with ELU between them."""

    def __init__(self, features: int) -> None:
        super().__init__()
        for i in range(LAYERS):
            self.add_module(f"linear_{i}", nn.Linear(features, features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (d,) to (d,)."""
        first, *others = self.children()
        x = first(x)
        for layer in others:
            x = layer(nn.functional.elu(x))
        return x


class Amortised(nn.Module):
    """Map a mean feature (d,) to the mean and log variance (d,) of the bases."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean = LinearLayers(features)
        self.log_variance = LinearLayers(features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance."""
        return self.mean(x), self.log_variance(x)


class KCLNetwork(nn.Module):
    """An encoder, networks for posterior and prior if there are bases, and the scalars."""

    def __init__(
        self, backbone: Any, shape: tuple[int, int, int], num_tasks: int, has_bases: bool
    ) -> None:
        super().__init__()
        backbone.classifier = nn.Identity()  # unused: KCL has its own classifier
        self.encoder: Any = backbone
        with torch.no_grad():
            features = self.encode(torch.zeros(2, *shape)).shape[1]
        if has_bases:
            self.posterior = Amortised(features)
            self.prior = Amortised(features)
        for name in SCALARS:
            self.register_parameter(name, nn.Parameter(torch.zeros(num_tasks)))

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to features (B, d)."""
        return self.encoder.encode(x)

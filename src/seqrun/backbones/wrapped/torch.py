"""Wrapped modules for PyTorch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from seqrun.backbones.wrapped import BODY, WrappedOptions
from seqrun.checks import ConfigError
from seqrun.formulas.parameters.torch import canonical_names


class WrappedModule(nn.Module):
    """An encoder followed by a classifier."""

    def __init__(self, body: nn.Module, layout: str, features: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(features, num_classes)
        self._layout = layout

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the classifier's input (B, features)."""
        return _features(self.body, x, self._layout)

    def classify(self, features: Tensor) -> Tensor:
        """Map (B, features) to logits (B, num_classes)."""
        return self.classifier(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to logits (B, num_classes)."""
        return self.classify(self.encode(x))


@dataclass(kw_only=True, eq=False)
class Wrapped(WrappedOptions):
    """A torch.nn.Module as encoder; a subclass creates it in `make_body`.

    Args:
        classifier: dotted name of the module's last layer, which is removed so that the module
            returns that layer's input; None = the module already returns features.

    See WrappedOptions for the others. Buffers that training changes, other than BatchNorm's mean
    and variance, are not part of a checkpoint.
    """

    layout: str = "NCHW"
    classifier: str | None = None
    _has_batch_statistics: bool = field(init=False, default=False, repr=False)

    backend: ClassVar[str] = "torch"

    def make_body(self, input_shape: tuple[int, int, int]) -> nn.Module:
        """Return a new module for (H, W, C) images in the stated `layout`.

        During the call, torch's global random generator is seeded by the run.
        """
        raise NotImplementedError

    @property
    def has_batch_statistics(self) -> bool:
        """Whether the module that was built last has a BatchNorm layer."""
        return self._has_batch_statistics

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Return the module for (H, W, C) inputs.

        Raises:
            ConfigError: the module cannot be trained, or has another number of features.
        """
        body = self.make_body(input_shape)
        if self.classifier is not None:
            _remove_layer(body, self.classifier)
        self._has_batch_statistics = _has_batch_norm(body)
        features = _checked_features(body, self.layout, input_shape)
        if self.features not in (None, features):
            raise ConfigError(
                f"features={self.features}: must be {features}, the size of the module's output"
            )
        return WrappedModule(body, self.layout, features, num_classes)


@dataclass(kw_only=True, eq=False)
class _Instance(Wrapped):
    """A backbone around copies of an existing module."""

    module: nn.Module = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._has_batch_statistics = _has_batch_norm(self.module)

    def make_body(self, input_shape: tuple[int, int, int]) -> nn.Module:
        return copy.deepcopy(self.module)


def wrap_module(
    module: nn.Module,
    *,
    features: int | None = None,
    layout: str | None = None,
    initialization: str = "own",
    classifier: str | None = None,
) -> Wrapped:
    """Return a backbone with a copy of `module` as encoder; see Wrapped for the arguments.

    Raises:
        ConfigError: a value out of range.
    """
    return _Instance(
        module=module,
        features=features,
        layout=layout or "NCHW",
        initialization=initialization,
        classifier=classifier,
    )


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def _features(body: nn.Module, x: Tensor, layout: str) -> Tensor:
    if layout == "NCHW":
        x = x.permute(0, 3, 1, 2)
    elif layout == "flat":
        x = x.flatten(1)
    return body(x).flatten(1)


def _remove_layer(body: nn.Module, name: str) -> None:
    """Replace a layer with the identity."""
    layers = dict(body.named_modules())
    if not name or name not in layers:
        listed = ", ".join(n for n, _ in body.named_children())
        raise ConfigError(f"classifier={name!r}: the module has no such layer; it has {listed}")
    parent, _, leaf = name.rpartition(".")
    setattr(layers[parent], leaf, nn.Identity())


def _checked_features(body: nn.Module, layout: str, input_shape: tuple[int, int, int]) -> int:
    """Return the size of a body's flattened output; check that all parameters train."""
    params = canonical_names(body)[0]
    if len({id(p) for p in params.values()}) < len(params):
        raise ConfigError("module: shares a parameter between layers, which is not supported")
    frozen = [name for name, p in params.items() if not p.requires_grad]
    if frozen:
        raise ConfigError(f"module: {frozen[0]} must require a gradient, all parameters train")
    body.eval()
    output = _features(body, torch.zeros(2, *input_shape), layout)
    body.train()
    if output.ndim != 2 or len(output) != 2:
        raise ConfigError(
            f"module: returns {tuple(output.shape)} for 2 images, must return (2, features)"
        )
    if params:
        values = list(params.values())
        gradients = torch.autograd.grad(output.sum(), values, allow_unused=True)
        unused = [name for name, g in zip(params, gradients, strict=True) if g is None]
        if unused:
            raise ConfigError(f"module: {BODY}/{unused[0]} has no effect on the module's output")
    return output.shape[1]

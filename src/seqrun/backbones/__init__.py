"""Backbones: the options of both backends; the networks are in torch.py and jax.py.

Parameters have the same canonical names and layouts on both backends: dense kernels (in, out),
convolution kernels HWIO, names such as "hidden_0/kernel".
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from seqrun.backbones.base import BaseBackbone, MLPOptions, draw_initial_weights
from seqrun.checks import ConfigError

__all__ = ["BaseBackbone", "MLPOptions", "draw_initial_weights", "wrap"]

_FRAMEWORKS = {"torch": "torch", "flax": "jax"}


def wrap(
    module: Any,
    *,
    features: int | None = None,
    layout: str | None = None,
    initialization: str = "own",
    classifier: str | None = None,
) -> BaseBackbone:
    """Return a backbone with a torch.nn.Module or a flax module (linen or nnx) as encoder.

    Args:
        module: maps a batch of images to features; a classifier is added after it.
        features: size of its flattened output; None = determined from the module.
        layout: layout of its input: "NCHW" (usual on torch), "NHWC" (usual on flax) or "flat".
        initialization: "own" = the module's own weights; or one of BaseBackbone's.
        classifier: dotted name of the last layer of a torch module, which is removed.

    Raises:
        ConfigError: not a module, or a value out of range.
    """
    for kind in type(module).__mro__:
        package = kind.__module__.split(".")[0]
        if package in _FRAMEWORKS and kind.__name__ == "Module":
            twin = import_module(f"seqrun.backbones.wrapped.{_FRAMEWORKS[package]}")
            return twin.wrap_module(
                module,
                features=features,
                layout=layout,
                initialization=initialization,
                classifier=classifier,
            )
    raise ConfigError(f"module={module!r}: must be a torch.nn.Module or a flax module")

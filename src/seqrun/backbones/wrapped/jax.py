"""Wrapped modules for JAX: flax's linen and nnx."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from seqrun.backbones.wrapped import WrappedOptions
from seqrun.checks import ConfigError

MODES = {"train": True, "training": True, "deterministic": False, "use_running_average": False}
"""Argument that sets the mode of a linen module -> its value in training."""


class NnxBody(nn.Module):
    """An nnx module as a linen module, with its weights as linen parameters.

    Attributes:
        template: the nnx module with the initial weights; it is never changed.
    """

    template: Any

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Call the module in train or eval mode; its random streams start from "dropout"."""
        parts: Any = nnx.split(self.template, nnx.Param, nnx.BatchStat, ...)
        graph, params, stats, rest = parts
        for _, variable in nnx.to_flat_state(rest):
            if not isinstance(variable, nnx.RngState):
                raise ConfigError(
                    f"module: holds a {type(variable).__name__}, may only hold Param, BatchStat "
                    "and random streams"
                )
        # Nested dictionaries become linen parameters with the names that a linen module would have.
        values = {n: self.param(n, lambda _, v=v: v) for n, v in _nested(params).items()}
        cells = {
            n: self.variable("batch_stats", n, lambda v=v: v) for n, v in _nested(stats).items()
        }
        module = nnx.merge(
            graph,
            _with_values(params, values),
            _with_values(stats, {n: cell.value for n, cell in cells.items()}),
            rest,
            copy=True,
        )
        if train:
            module.train()
            self._start_streams(module)
        else:
            module.eval()
        out = module(x)
        if train and not self.is_initializing():
            for name, value in _nested(nnx.state(module, nnx.BatchStat)).items():
                cells[name].value = value
        return out

    def _start_streams(self, module: nnx.Module) -> None:
        streams = [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream)]
        if streams and self.has_rng("dropout"):
            key = self.make_rng("dropout")
            for i, stream in enumerate(streams):
                stream.key.set_value(jax.random.fold_in(key, i))


def _nested(state: Any) -> dict[str, Any]:
    """Return an nnx state as nested dictionaries with names as keys."""
    flat = {tuple(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(state)}
    return unflatten_dict(flat)


def _with_values(state: Any, values: dict[str, Any]) -> Any:
    """Return a copy of an nnx state that holds the values of nested dictionaries."""
    flat = flatten_dict(values)
    return nnx.from_flat_state(
        [(path, v.replace(flat[tuple(map(str, path))])) for path, v in nnx.to_flat_state(state)]
    )


class WrappedModule(nn.Module):
    """An encoder followed by a classifier."""

    body: nn.Module
    layout: str
    num_classes: int

    def setup(self) -> None:
        """Declare the classifier."""
        self.classifier = nn.Dense(self.num_classes)

    def encode(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to the classifier's input (B, features)."""
        if self.layout == "NCHW":
            x = x.transpose(0, 3, 1, 2)
        elif self.layout == "flat":
            x = x.reshape(len(x), -1)
        takes = inspect.signature(type(self.body).__call__).parameters
        modes = {name: train == value for name, value in MODES.items() if name in takes}
        out = self.body(x, **modes)
        return out.reshape(len(out), -1)

    def classify(self, features: Array) -> Array:
        """Map (B, features) to logits (B, num_classes)."""
        return self.classifier(features)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map (B, H, W, C) to logits (B, num_classes)."""
        return self.classify(self.encode(x, train))


@dataclass(kw_only=True, eq=False)
class Wrapped(WrappedOptions):
    """A flax module (linen or nnx) as encoder; a subclass creates it in `make_body`.

    A linen module that behaves differently in training takes one of the arguments `train`,
    `training`, `deterministic` or `use_running_average`. It may draw from the stream "dropout" only
    and have no collections but `params` and `batch_stats`.

    See WrappedOptions for the arguments.
    """

    _has_batch_statistics: bool = field(init=False, default=False, repr=False)

    backend: ClassVar[str] = "jax"

    def make_body(self, input_shape: tuple[int, int, int]) -> nn.Module | nnx.Module:
        """Return a new module for (H, W, C) images in the stated `layout`.

        With initialization = "own", an nnx module keeps the weights with which it is created; a
        linen module draws its weights with its own initializers, from the stream "init".
        """
        raise NotImplementedError

    @property
    def has_batch_statistics(self) -> bool:
        """Whether the module that was built last has batch statistics."""
        return self._has_batch_statistics

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Return the module for (H, W, C) inputs.

        Raises:
            ConfigError: the module cannot be trained, or has another number of features.
        """
        body = self.make_body(input_shape)
        if isinstance(body, nnx.Module):
            body = NnxBody(body)
        module = WrappedModule(body, self.layout, num_classes)
        sample = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
        shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), sample)
        others = sorted(set(shapes) - {"params", "batch_stats"})
        if others:
            raise ConfigError(
                f"module: keeps {', '.join(others)}, may only keep params and batch_stats"
            )
        features = shapes["params"]["classifier"]["kernel"].shape[0]
        if self.features not in (None, features):
            raise ConfigError(
                f"features={self.features}: must be {features}, the size of the module's output"
            )
        self._has_batch_statistics = "batch_stats" in shapes
        return module


@dataclass(kw_only=True, eq=False)
class _Instance(Wrapped):
    """A backbone around an existing module, which is never changed."""

    module: Any = field(repr=False)

    def make_body(self, input_shape: tuple[int, int, int]) -> nn.Module | nnx.Module:
        return self.module


def wrap_module(
    module: nn.Module | nnx.Module,
    *,
    features: int | None = None,
    layout: str | None = None,
    initialization: str = "own",
    classifier: str | None = None,
) -> Wrapped:
    """Return a backbone with `module` as encoder; see WrappedOptions for the arguments.

    Raises:
        ConfigError: a value out of range, or a `classifier`, which flax cannot remove.
    """
    if classifier is not None:
        raise ConfigError(
            f"classifier={classifier!r}: must be null for a flax module, whose layers cannot be "
            "removed"
        )
    return _Instance(
        module=module,
        features=features,
        layout=layout or "NHWC",
        initialization=initialization,
    )

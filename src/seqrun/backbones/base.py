"""BaseBackbone, the options of the MLP, and initial weights drawn in NumPy."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, ClassVar

import numpy as np

from seqrun.checks import Numerics, boolean, one_of, whole, within
from seqrun.plan import RandomStreams

MAX_LAYERS = 1000
GENERAL_INITIALIZATIONS = ("torch_default", "kaiming_normal", "xavier_uniform")
ZERO_HEAD = "xavier_uniform_zero_head"
INITIALIZATIONS = (*GENERAL_INITIALIZATIONS, ZERO_HEAD)


@dataclass(kw_only=True, eq=False)
class BaseBackbone:
    """Describe a network; `build` returns it as a module of the framework.

    The module maps (B, H, W, C) float32 inputs to (B, num_classes) logits; its `encode` returns
    the classifier's input and its `classify` maps that to logits.

    Args:
        initialization: "torch_default" (kernel and bias uniform in +-1/sqrt(fan_in)),
            "kaiming_normal" (std sqrt(2/fan_in), zero bias), "xavier_uniform"
            (bound sqrt(6/(fan_in + fan_out)), zero bias), or "xavier_uniform_zero_head" (the
            same with a zero classifier, so that all classes are equally probable).

    Raises:
        ConfigError: an unknown initialization.
    """

    initialization: str = "torch_default"

    name: ClassVar[str]
    backend: ClassVar[str]
    initializations: ClassVar[tuple[str, ...]] = INITIALIZATIONS
    numerics: ClassVar[Numerics] = 1

    def __post_init__(self) -> None:
        one_of("initialization", self.initialization, self.initializations)

    @property
    def sized_by(self) -> str:
        """The options that affect the network's size most, as "key=value"."""
        return f"backbone={self.name}"

    @property
    def is_noisy(self) -> bool:
        """Whether the forward pass draws random numbers in training."""
        return False

    @property
    def has_batch_statistics(self) -> bool:
        """Whether the forward pass depends on the whole batch in training (BatchNorm)."""
        return False

    @property
    def may_have_batch_statistics(self) -> bool:
        """The same of a network that may not have been built, and knows its layers only then."""
        return self.has_batch_statistics or "own" in self.initializations

    def keeps(self, name: str) -> bool:
        """Return whether a parameter or statistic keeps its value from `build` and is not drawn."""
        return False

    def check_input(self, input_shape: tuple[int, int, int]) -> None:
        """Raise ConfigError if the network cannot process images of shape (H, W, C)."""

    def convolutions(self, input_shape: tuple[int, int, int]) -> dict[str, int]:
        """Return end of a convolution's name -> number of its output positions.

        `multiply_adds` estimates the number for convolutions that are left out.
        """
        return {}

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> Any:
        """Return the framework's module for (H, W, C) inputs and `num_classes` outputs."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class MLPOptions(BaseBackbone):
    """A multi-layer perceptron: n_hidden_layers x (dense, [BatchNorm], ReLU, [dropout]), dense.

    Args:
        width: units of each hidden layer, >= 1.
        n_hidden_layers: 1 to 1000.
        dropout: probability of dropping a hidden activation, in [0, 1).
        batch_norm: normalise before each ReLU (momentum 0.1, eps 1e-5, unbiased running variance).
        initialization: see BaseBackbone.

    Raises:
        ConfigError: a value out of range.
    """

    width: int = 256
    n_hidden_layers: int = 2
    dropout: float = 0.0
    batch_norm: bool = False

    name: ClassVar[str] = "mlp"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("width", self.width, 1)
        whole("n_hidden_layers", self.n_hidden_layers, 1)
        within("n_hidden_layers", self.n_hidden_layers, 1, MAX_LAYERS)
        within("dropout", self.dropout, 0.0, 1.0, open_high=True)
        boolean("batch_norm", self.batch_norm)

    @property
    def sized_by(self) -> str:
        return f"backbone.width={self.width}"

    @property
    def is_noisy(self) -> bool:
        return self.dropout > 0

    @property
    def has_batch_statistics(self) -> bool:
        return self.batch_norm


def draw_initial_weights(
    shapes: Mapping[str, tuple[int, ...]], initialization: str, streams: RandomStreams
) -> dict[str, np.ndarray]:
    """Draw the initial value of every parameter, each from its own generator.

    The values depend neither on the order of the parameters nor on the framework.

    Args:
        shapes: canonical name -> canonical shape.
        initialization: see BaseBackbone.
        streams: the stream "init" is used.

    Returns:
        Canonical name -> float32 array. "scale" is 1; a "bias" next to a "scale" is 0.
    """
    return {
        name: _draw(name, shape, shapes, initialization, streams).astype(np.float32)
        for name, shape in shapes.items()
    }


def _draw(
    name: str,
    shape: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
    initialization: str,
    streams: RandomStreams,
) -> np.ndarray:
    layer, _, leaf = name.rpartition("/")
    kernel = shapes.get(f"{layer}/kernel")
    if leaf == "scale":
        return np.ones(shape)
    if layer == "classifier" and initialization == ZERO_HEAD:
        return np.zeros(shape)
    if kernel is None or (leaf == "bias" and initialization not in ("torch_default", "own")):
        return np.zeros(shape)
    generator = streams.generator("init", zlib.crc32(name.encode()))
    fan_in = prod(kernel[:-1])
    fan_out = prod(kernel[:-2]) * kernel[-1]
    if initialization == "kaiming_normal":
        return generator.normal(0.0, sqrt(2.0 / fan_in), shape)
    bound = 1.0 / sqrt(fan_in)
    if initialization.startswith("xavier_uniform"):
        bound = sqrt(6.0 / (fan_in + fan_out))
    return generator.uniform(-bound, bound, shape)


def multiply_adds(
    shapes: Mapping[str, tuple[int, ...]],
    input_shape: tuple[int, int, int],
    convolutions: Mapping[str, int] | None = None,
) -> int:
    """Estimate the multiply-adds of one sample's forward pass from canonical parameter shapes.

    Args:
        shapes: canonical name -> canonical shape.
        input_shape: (H, W, C) of the images.
        convolutions: see BaseBackbone; a convolution that is left out is assumed to have a
            quarter of the input's positions, since networks halve the image early.
    """
    known = convolutions or {}
    estimate = max(1, input_shape[0] * input_shape[1] // 4)

    def positions(layer: str) -> int:
        return next((n for end, n in known.items() if f"/{layer}".endswith(f"/{end}")), estimate)

    return sum(
        prod(shape) * (positions(name.removesuffix("/kernel")) if len(shape) == 4 else 1)
        for name, shape in shapes.items()
        if name.endswith("kernel")
    )

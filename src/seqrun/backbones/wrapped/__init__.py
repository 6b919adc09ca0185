"""Wrapped: a user's module as encoder, with a classifier behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.backbones.base import OF_ANY_NETWORK, BaseBackbone
from seqrun.checks import one_of, whole

LAYOUTS = ("NHWC", "NCHW", "flat")
BODY = "body"
"""Name of the module in canonical names; the layer behind it is "classifier"."""
DRAWN = ("kernel", "bias", "scale")
"""Leaves for which initializations have a rule."""


@dataclass(kw_only=True, eq=False)
class WrappedOptions(BaseBackbone):
    """A module that maps images to features, then a dense classifier.

    The classifier is always initialized as "torch_default", from the stream "init".

    Args:
        features: size of the module's flattened output, >= 1; None = determined from the module.
        layout: layout of the module's input: "NHWC" and "NCHW" are images, "flat" is (B, H W C).
        initialization: "own": the module's own weights, whatever the seed; or one of
            BaseBackbone's, for dense, convolution and normalisation layers, while other layers keep
            their own parameters.

    Raises:
        ConfigError: a value out of range.
    """

    features: int | None = None
    layout: str = "NHWC"
    initialization: str = "own"

    name: ClassVar[str] = "wrapped"
    initializations: ClassVar[tuple[str, ...]] = ("own", *OF_ANY_NETWORK)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("layout", self.layout, LAYOUTS)
        if self.features is not None:
            whole("features", self.features, 1)

    @property
    def is_noisy(self) -> bool:
        """Always True: a module may draw random numbers."""
        return True

    def keeps(self, name: str) -> bool:
        """Keep all own weights and statistics, or only those without a rule of initialization."""
        *path, leaf = name.split("/")
        return BODY in path and (self.initialization == "own" or leaf not in DRAWN)

"""Wrapped: a user's module as encoder, followed by a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.backbones.base import GENERAL_INITIALIZATIONS, BaseBackbone
from seqrun.checks import one_of, whole

LAYOUTS = ("NHWC", "NCHW", "flat")
BODY = "body"
"""Name of the module in canonical names; the layer after it is "classifier"."""
DRAWN = ("kernel", "bias", "scale")
"""Last part of the canonical names of parameters that an initialization can draw."""


@dataclass(kw_only=True, eq=False)
class WrappedOptions(BaseBackbone):
    """A module that maps images to features, then a dense classifier.

    The classifier is always initialized as "torch_default", from the stream "init".

    Args:
        features: size of the module's flattened output, >= 1; None = determined from the module.
        layout: layout of the module's input: "NHWC" and "NCHW" are images, "flat" is (B, H W C).
        initialization: "own": the module's own weights, whatever the seed; or one of
            BaseBackbone's, which applies to dense, convolution and normalisation layers; other
            layers keep their own parameters.

    Raises:
        ConfigError: a value out of range.
    """

    features: int | None = None
    layout: str = "NHWC"
    initialization: str = "own"

    name: ClassVar[str] = "wrapped"
    initializations: ClassVar[tuple[str, ...]] = ("own", *GENERAL_INITIALIZATIONS)

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
        """Return True for all of the module with "own", else for what is never drawn."""
        *path, leaf = name.split("/")
        return BODY in path and (self.initialization == "own" or leaf not in DRAWN)

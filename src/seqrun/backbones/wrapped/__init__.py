"""Wrapped: a module of one's own as encoder, with a classifier of ours behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.backbones.base import OF_ANY_NETWORK, BaseBackbone
from seqrun.checks import one_of, whole

LAYOUTS = ("NHWC", "NCHW", "flat")
BODY = "body"
"""What the module is called in canonical names; the layer behind it is "classifier"."""
DRAWN = ("kernel", "bias", "scale")
"""Leaves that an initialization has a rule for."""


@dataclass(kw_only=True, eq=False)
class WrappedOptions(BaseBackbone):
    """A module that maps images to features, then a dense classifier.

    The classifier is always drawn from the stream "init", as "torch_default" is.

    Args:
        features: size of the module's flattened output, >= 1; None = as it is found to be.
        layout: how the module takes its input: "NHWC" and "NCHW" are images, "flat" is (B, H W C).
        initialization: "own": the weights that the module brings, whatever the seed; or one of
            BaseBackbone's, for all dense and convolution layers and what normalises, while
            parameters of other layers stay the module's own.

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
        """A module may draw random numbers: nothing says that it does not."""
        return True

    def keeps(self, name: str) -> bool:
        """Keep the module's own weights and statistics, or those that nothing else can draw."""
        *path, leaf = name.split("/")
        return BODY in path and (self.initialization == "own" or leaf not in DRAWN)

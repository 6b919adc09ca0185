"""ResNet-18 for small images, as used in the continual-learning literature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seqrun.backbones.base import BaseBackbone
from seqrun.checks import whole, within

STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)
"""Strides of the 8 blocks: 4 stages of 2; all stages but the first halve the image."""


@dataclass(kw_only=True, eq=False)
class ResNet18Options(BaseBackbone):
    """ResNet-18 with a 3 x 3 stem of stride 1 and no pooling before the blocks.

    The network is a stem (convolution, BatchNorm, ReLU), 8 basic blocks of nf, nf, 2 nf, 2 nf,
    4 nf, 4 nf, 8 nf and 8 nf channels, the mean over positions, and the classifier. A block is
    convolution, BatchNorm, ReLU, convolution, BatchNorm, plus its input (through a 1 x 1
    convolution and BatchNorm where the shape changes), ReLU. Convolutions are 3 x 3 and have no
    bias. BatchNorm: momentum 0.1, eps 1e-5, unbiased running variance.

    He et al. 2016 (1512.03385), in the form of GEM's authors' code (Lopez-Paz & Ranzato 2017,
    facebookresearch/GradientEpisodicMemory, model/common.py; nf = 20) and of Mammoth's
    (backbone/ResNet18.py; nf = 64).

    Differs from them: the mean is over all positions, while GEM's is over windows of 4 x 4. For
    32 x 32 images this is the same; images of any other size work too.

    Args:
        nf: channels of the first stage, >= 1.
        dropout: probability of dropping an activation after each ReLU of a block, in [0, 1).
        initialization: see BaseBackbone.

    Raises:
        ConfigError: a value out of range.
    """

    nf: int = 64
    dropout: float = 0.0

    name: ClassVar[str] = "resnet18"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("nf", self.nf, 1)
        within("dropout", self.dropout, 0.0, 1.0, open_high=True)

    @property
    def sized_by(self) -> str:
        return f"backbone.nf={self.nf}"

    @property
    def is_noisy(self) -> bool:
        return self.dropout > 0

    @property
    def has_batch_statistics(self) -> bool:
        return True

    def convolutions(self, input_shape: tuple[int, int, int]) -> dict[str, int]:
        height, width, _ = input_shape
        positions = {"stem": height * width}
        for i, stride in enumerate(STRIDES):
            height, width = -(-height // stride), -(-width // stride)
            for layer in ("conv_0", "conv_1", "shortcut"):
                positions[f"block_{i}/{layer}"] = height * width
        return positions


@dataclass(kw_only=True, eq=False)
class ResNet18ThinOptions(ResNet18Options):
    """The reduced ResNet-18 of GEM and A-GEM: nf = 20, about a tenth of the parameters."""

    nf: int = 20

    name: ClassVar[str] = "resnet18_thin"


def block_channels(nf: int) -> list[int]:
    """Return the channels of the 8 blocks."""
    return [nf * 2 ** (i // 2) for i in range(len(STRIDES))]

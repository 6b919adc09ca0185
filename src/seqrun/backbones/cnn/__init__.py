"""Convolutional networks: a small general one, and the one of the La-MAML paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from seqrun.backbones.base import BaseBackbone
from seqrun.checks import ConfigError, boolean, whole, within


@dataclass(kw_only=True, eq=False)
class CNNOptions(BaseBackbone):
    """Blocks of (convolution, [BatchNorm], ReLU, [max pool]), then dense layers and a classifier.

    A convolution is padded by kernel_size // 2, so that stride 1 preserves the image size. The last
    block's output is flattened in the order (H, W, C). Without BatchNorm a convolution has a bias.

    Args:
        channels: output channels of each block, >= 1; at least one block.
        kernel_size: side of every kernel, odd.
        stride: stride of every convolution, >= 1.
        pool: side (and stride) of the max pool that ends a block, >= 1; 1 = none.
        hidden: units of each dense layer (with a ReLU) before the classifier, >= 1; may be empty.
        dropout: probability of dropping an activation of a dense layer, in [0, 1).
        batch_norm: normalise before each ReLU of a block (momentum 0.1, eps 1e-5, unbiased running
            variance).
        initialization: see BaseBackbone.

    Raises:
        ConfigError: a value out of range.
    """

    channels: Sequence[int] = (32, 64)
    kernel_size: int = 3
    stride: int = 1
    pool: int = 2
    hidden: Sequence[int] = (128,)
    dropout: float = 0.0
    batch_norm: bool = False

    name: ClassVar[str] = "cnn"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, min_length in (("channels", 1), ("hidden", 0)):
            sizes = getattr(self, key)
            is_list = isinstance(sizes, Sequence) and not isinstance(sizes, str)
            if not is_list or len(sizes) < min_length:
                raise ConfigError(
                    f"{key}={sizes!r}: must be a list of at least {min_length} integers >= 1"
                )
            for i, size in enumerate(sizes):
                whole(f"{key}[{i}]", size, 1)
        whole("kernel_size", self.kernel_size, 1)
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size={self.kernel_size}: must be an odd integer >= 1")
        whole("stride", self.stride, 1)
        whole("pool", self.pool, 1)
        within("dropout", self.dropout, 0.0, 1.0, open_high=True)
        boolean("batch_norm", self.batch_norm)

    @property
    def sized_by(self) -> str:
        return f"backbone.channels={list(self.channels)}, backbone.hidden={list(self.hidden)}"

    @property
    def is_noisy(self) -> bool:
        return self.dropout > 0

    @property
    def has_batch_statistics(self) -> bool:
        return self.batch_norm

    def map_sizes(self, input_shape: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Return (H, W) of the images and of each block's output, 0 where nothing is left."""
        sizes = [input_shape[:2]]
        for _ in self.channels:
            height, width = (_output_size(n, self.stride) // self.pool for n in sizes[-1])
            sizes.append((height, width))
        return sizes

    def check_input(self, input_shape: tuple[int, int, int]) -> None:
        """Raise ConfigError if pooling shrinks the images to nothing."""
        blocks = sum(min(size) > 0 for size in self.map_sizes(input_shape)) - 1
        if blocks < len(self.channels):
            raise ConfigError(
                f"backbone.channels={list(self.channels)}: must have at most {blocks} entries for "
                f"images of {input_shape[0]} x {input_shape[1]} with backbone.pool={self.pool} "
                f"and backbone.stride={self.stride}"
            )

    def convolutions(self, input_shape: tuple[int, int, int]) -> dict[str, int]:
        sizes = self.map_sizes(input_shape)[:-1]
        return {
            f"conv_{i}": _output_size(height, self.stride) * _output_size(width, self.stride)
            for i, (height, width) in enumerate(sizes)
        }


@dataclass(kw_only=True, eq=False)
class LaMAMLCNNOptions(CNNOptions):
    """The CNN of La-MAML: convolutions of 160 filters with stride 2, two dense layers, ReLU.

    Gupta et al. 2020 (2007.13904), as in the authors' code (montrealrobotics/La-MAML,
    model/meta/modelfactory.py, "pc_cnn"): 3 x 3 kernels, stride 2, padding 1, neither pooling nor
    BatchNorm, Kaiming-normal weights and zero biases. The defaults are for CIFAR-100: 3
    convolutions and dense layers of 320 units; for TinyImageNet the authors take 4 and 640.

    Differs from the authors' code: the last map is flattened in the order (H, W, C), not
    (C, H, W), which makes no difference for randomly drawn weights.
    """

    channels: Sequence[int] = (160, 160, 160)
    stride: int = 2
    pool: int = 1
    hidden: Sequence[int] = (320, 320)
    initialization: str = "kaiming_normal"

    name: ClassVar[str] = "cnn_lamaml"


def _output_size(size: int, stride: int) -> int:
    """Return the output size of a convolution with an odd kernel, padded by half of it."""
    return -(-size // stride)

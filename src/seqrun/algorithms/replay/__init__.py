"""Replay: train on stored samples of the stream in addition to the current ones.

A method defines the budget and policy of its memory, and its loss if it is not the mean CE over
both batches (`ReplayAlgorithm` in torch.py and jax.py). MemoryMechanism plans which samples are
stored and replayed. The replayed samples are in `step.batches["replay"]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seqrun.algorithms.base.memory import MemoryOwner
from seqrun.backbones.base import BaseBackbone
from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError, whole


@dataclass(kw_only=True, eq=False)
class ReplayOptions(MemoryOwner):
    """Options of all replay methods.

    Args:
        memory_batch_size: samples of each memory batch, >= 1; if fewer are stored, all of them.

    Raises:
        ConfigError: a value out of range.
    """

    memory_batch_size: int = 10

    batch_names: ClassVar[tuple[str, ...]] = ("index", "replay")

    def __post_init__(self) -> None:
        whole("memory_batch_size", self.memory_batch_size, 1)
        super().__post_init__()

    def make_replay_dataset(self, data: Dataset) -> Dataset:
        """Return the task's data, then the memory."""
        return self.memory.start_task(data, self.num_tasks)

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Add replay batches and reservoir writes to the epoch's batches."""
        parts = super().plan_epoch(task, epoch, num_samples)
        sizes = dict.fromkeys(self.batch_names[1:], self.memory_batch_size)
        return self.memory.plan_epoch(parts, self.random, task, epoch, sizes)

    def samples_per_step(self) -> int:
        """Add the memory batches to the current one."""
        replayed = self.memory_batch_size * len(self.batch_names[1:])
        return super().samples_per_step() + replayed

    def on_after_task(self) -> None:
        """Update the memory at the end of the task."""
        features = None
        if self.memory.policy == "herding":
            features = self.features(self.replay_dataset.x[: self.num_current])
        self.memory.end_task(self.task, self.random, features)
        self.progress.memory_bytes = self.memory.num_bytes


def refuse_single_samples(backbone: BaseBackbone, **limits: int) -> None:
    """Raise ConfigError if BatchNorm would have to normalise a memory batch of one sample.

    Args:
        backbone: the network, which each memory batch goes through separately.
        limits: option -> its value, which limits the size of memory batches.
    """
    for key, value in limits.items():
        if backbone.has_batch_statistics and value == 1:
            raise ConfigError(
                f"{key}=1: must be at least 2 with a BatchNorm backbone, which cannot normalise "
                "a memory batch of one sample"
            )

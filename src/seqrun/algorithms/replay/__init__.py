"""Replay: train on stored samples of the stream beside the current ones.

A method states the budget and policy of its memory, and its loss if that is not the mean CE of
both batches (`ReplayAlgorithm` of the twins). Which samples are replayed and stored is planned by
MemoryMechanism. Replayed samples are in `step.batches["replay"]`.
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
    """What all replay methods take.

    Args:
        memory_batch_size: samples of each memory batch, >= 1; all that are stored if fewer.

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
        """Make the memory of the task's end."""
        features = None
        if self.memory.policy == "herding":
            features = self.features(self.replay_dataset.x[: self.num_current])
        self.memory.end_task(self.task, self.random, features)
        self.progress.memory_bytes = self.memory.num_bytes


def refuse_single_samples(backbone: BaseBackbone, **smallest: int) -> None:
    """Raise ConfigError where a memory batch of one sample would meet BatchNorm.

    Args:
        backbone: what memory batches go through on their own.
        smallest: key -> value, each of which limits a memory batch.
    """
    for key, value in smallest.items():
        if backbone.has_batch_statistics and value == 1:
            raise ConfigError(
                f"{key}=1: must be at least 2 with a BatchNorm backbone, which cannot normalise "
                "a memory batch of one sample"
            )

"""Replay: train on stored samples of the stream beside the current ones.

A method states the budget and policy of its memory, and its loss if that is not the mean CE of
both batches (`ReplayAlgorithm` of the twins). Reads, writes and the memory itself are the plan's.
Replayed samples are in `step.reads["replay"]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from seqrun.backbones.base import BaseBackbone
from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError, whole
from seqrun.memory import MemoryMechanism
from seqrun.algorithms.base.memory import MemoryOwner
from seqrun.plan import RandomStreams


@dataclass(kw_only=True, eq=False)
class ReplayOptions(MemoryOwner):
    """What all replay methods take; to be mixed in before an engine.

    Args:
        memory_batch_size: samples of each memory batch, >= 1; all that are stored if fewer.

    Raises:
        ConfigError: a value out of range.
    """

    memory_batch_size: int = 10

    pool_reads: ClassVar[tuple[str, ...]] = ("index", "replay")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # the engine's, next in line
        whole("memory_batch_size", self.memory_batch_size, 1)
        self.memory = self.make_memory()

    def make_memory(self) -> MemoryMechanism:
        """Return an empty memory with the method's budget and policy."""
        raise NotImplementedError

    def task_pool(self, data: Dataset) -> Dataset:
        """Return the task's data, then the memory."""
        return self.memory.start_task(data, self.num_tasks)  # type: ignore[attr-defined]

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Add reads and writes to the epoch's batches."""
        parts = super().plan_epoch(task, epoch, num_samples)  # type: ignore[misc]
        reads = dict.fromkeys(self.pool_reads[1:], self.memory_batch_size)
        streams: RandomStreams = self.random  # type: ignore[attr-defined]
        return self.memory.plan_epoch(parts, streams, task, epoch, reads)

    def samples_per_step(self) -> int:
        """Add the memory batches to the current one."""
        replayed = self.memory_batch_size * len(self.pool_reads[1:])
        return super().samples_per_step() + replayed  # type: ignore[misc]

    def on_after_task(self, algorithm: Any) -> None:
        """Make the memory of the task's end."""
        features = None
        if self.memory.policy == "herding":
            features = algorithm.features(algorithm.host_pool.x[: algorithm.num_current])
        self.memory.end_task(algorithm.task, algorithm.random, features)
        self.memory_bytes = self.memory.num_bytes


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

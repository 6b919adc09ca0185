"""Streams whose samples contain their own number, so that a memory can be checked exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from seqrun.benchmarks import Dataset
from seqrun.memory import MemoryMechanism
from seqrun.plan import RandomStreams, batch_order

SAMPLE_BYTES = 2 * 2 + 4 + 4  # of each of `samples`


def samples(task: int, size: int, classes: int = 3) -> Dataset:
    """Return a task's samples, (size, 2, 2, 1); the first two pixels hold the sample's number."""
    numbers = np.arange(size)
    x = np.stack([numbers // 256, numbers % 256, 7 * numbers % 251, 0 * numbers], axis=1)
    y = (numbers * 5 % classes).astype(np.int32)
    return Dataset.of_task(x.astype(np.uint8).reshape(-1, 2, 2, 1), y, task)


def numbers_of(data: Dataset) -> np.ndarray:
    """Return (N, 2): task and number of each sample."""
    first, second = data.x[:, 0, :, 0].astype(int).T
    return np.stack([data.t.astype(int), 256 * first + second], axis=1)


def batches(streams: RandomStreams, task: int, epoch: int, size: int, width: int) -> list[dict]:
    """Return an epoch's plan before a memory adds to it."""
    return [{"index": a} for a in batch_order(streams, task, epoch, size, width) if len(a)]


def walk(
    memory: MemoryMechanism,
    sizes: Sequence[int],
    seed: int = 0,
    epochs: int = 1,
    width: int = 7,
    reads: dict[str, int] | None = None,
    first: int = 1,
) -> Iterator[int]:
    """Run `memory` through tasks of these sizes; yield each task (1-based) after its end."""
    streams = RandomStreams(seed)
    for task, size in enumerate(sizes, 1):
        if task < first:
            continue
        replay_dataset = memory.start_task(samples(task, size), len(sizes))
        for epoch in range(1, epochs + 1):
            parts = batches(streams, task, epoch, size, width)
            memory.plan_epoch(parts, streams, task, epoch, reads or {})
        features = None
        if memory.policy == "herding":
            features = replay_dataset.x[:size].reshape(size, -1).astype(np.float32)
        memory.end_task(task, streams, features)
        yield task

"""ER: Experience Replay.

Paper: Chaudhry et al. 2019, "On tiny episodic memories in continual learning", 1902.10486,
algorithm 1: each step trains on the current batch and a memory batch together, then offers the
batch to the reservoir.

Loss: mean CE over the concatenation of both batches.

`rehearsal` = "shuffled" is the naive rehearsal of Hsu et al. 2018 ("Re-evaluating continual
learning scenarios", 1810.12488). There are no memory batches: samples are drawn at random at the
end of each task, the tasks share the memory evenly, and later tasks repeat the stored samples and
shuffle them into their own data.

Differs from the paper: which trains for one epoch; with several, each sample is offered to the
reservoir in the first (`observe` = "every_epoch": in all). Other memories than the reservoir are
not offered. On a class-incremental stream, which the paper does not have, the softmax runs over
the classes seen so far; in Mammoth, whose ER others compare with, over all
(benchmark.softmax_over = "all"): 75.3 and 75.9 % on Split MNIST (five tasks of 2,000 images, 10
epochs, memory of 200, MLP 100-100; five seeds).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seqrun.algorithms.replay import ReplayOptions
from seqrun.checks import ConfigError, one_of, within
from seqrun.memory import MemoryMechanism


@dataclass(kw_only=True, eq=False)
class EROptions(ReplayOptions):
    """Train on the current batch and a memory batch together. Chaudhry et al. 2019 (1902.10486).

    Args:
        memory_size: samples in the memory, from all tasks together, >= 1.
        memory_batch_size: samples replayed per step, >= 1; if fewer are stored, all of them.
        memory_weight: None = mean CE over the concatenation; w in [0, 1] = (1 - w) CE(batch) +
            w CE(memory), as soon as the memory is not empty.
        rehearsal: "batch": a memory batch in each step; or "shuffled": each stored sample is
            repeated max(1, N // memory_size) times and shuffled into the N samples of the task.
        observe: "first_epoch": each sample is offered to the reservoir once per task; or
            "every_epoch".

    Raises:
        ConfigError: a value out of range.
    """

    memory_size: int = 200
    memory_weight: float | None = None
    rehearsal: str = "batch"
    observe: str = "first_epoch"

    name: ClassVar[str] = "er"
    vectorizable: ClassVar[tuple[str, ...]] = ("memory_weight",)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("observe", self.observe, ("first_epoch", "every_epoch"))
        one_of("rehearsal", self.rehearsal, ("batch", "shuffled"))
        if self.memory_weight is not None:
            within("memory_weight", self.memory_weight, 0.0, 1.0)
            if self.rehearsal == "shuffled":
                raise ConfigError(
                    f"memory_weight={self.memory_weight}: must be null with rehearsal=shuffled, "
                    "which weights all samples equally"
                )

    def make_memory(self) -> MemoryMechanism:
        """Return a reservoir, or a memory drawn at random at the end of each task."""
        policy = "reservoir" if self.rehearsal == "batch" else "random"
        return MemoryMechanism(policy=policy, memory_size=self.memory_size, observe=self.observe)

    @property
    def trains_on_task_alone(self) -> bool:
        return self.rehearsal == "batch"

    def training_size(self, task: int) -> int:
        """Return the number of samples of an epoch, including those that memory adds."""
        size_of = super().training_size
        size = size_of(task)
        if self.rehearsal == "batch" or task == 1:
            return size
        share, rest = divmod(self.memory_size, task - 1)
        filled = sum(min(size_of(t), share + (t <= rest)) for t in range(1, task))
        return size + filled * self._copies(size)

    def _copies(self, num_samples: int) -> int:
        """Return how often each stored sample occurs in an epoch of a task."""
        return max(1, num_samples // self.memory_size)

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Add memory batches, or shuffle the stored samples into the batches."""
        if self.rehearsal == "batch":
            return super().plan_epoch(task, epoch, num_samples)
        filled = self.memory.filled
        total = num_samples + filled * self._copies(num_samples)
        # Skip ReplayOptions: plain batches of an epoch with `total` samples.
        parts = super(ReplayOptions, self).plan_epoch(task, epoch, total)
        for part in parts:
            stored = part["index"] >= num_samples
            part["index"][stored] = num_samples + (part["index"][stored] - num_samples) % filled
            part["replay"] = np.zeros((len(part["index"]), 0), np.int32)
        return parts

    def hparams(self) -> dict[str, float]:
        """Add the weight of the memory, if it is set."""
        weight = {} if self.memory_weight is None else {"memory_weight": float(self.memory_weight)}
        return super().hparams() | weight

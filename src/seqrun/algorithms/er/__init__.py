"""ER: Experience Replay.

Paper: Chaudhry et al. 2019, "On tiny episodic memories in continual learning", 1902.10486,
algorithm 1: one step on the current batch and a memory batch together, then the batch is offered
to the reservoir.

Loss: mean CE over the concatenation of both batches.

`rehearsal` = "shuffled" is what Hsu et al. 2018 ("Re-evaluating continual learning scenarios",
1810.12488) call naive rehearsal: no memory batches, but a memory drawn at random at each task's end
and shared evenly by the tasks, repeated and shuffled into the data of the next ones.
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
    """Take each step on the current batch and a batch of memory. Chaudhry et al. 2019 (1902.10486).

    Args:
        memory_size: samples in the reservoir, over all tasks, >= 1.
        memory_batch_size: samples replayed per step, >= 1; all that are stored if fewer.
        memory_weight: None = mean CE over the concatenation; w in [0, 1] = (1 - w) CE(batch) +
            w CE(memory), once the memory holds anything.
        rehearsal: "batch": a memory batch beside each batch; or "shuffled": each stored sample
            max(1, N // memory_size) times among the N of the task, in batches of both kinds.
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
                    "which weighs every sample alike"
                )

    def make_memory(self) -> MemoryMechanism:
        """Return the reservoir, or what is drawn at each task's end."""
        policy = "reservoir" if self.rehearsal == "batch" else "random"
        return MemoryMechanism(policy=policy, memory_size=self.memory_size, observe=self.observe)

    @property
    def trains_on_task_alone(self) -> bool:
        """Whether batches hold samples of the current task alone."""
        return self.rehearsal == "batch"

    def training_size(self, task: int) -> int:
        """Return the samples of an epoch without loading them, those of the memory included."""
        size_of = super().training_size
        size = size_of(task)
        if self.rehearsal == "batch" or task == 1:
            return size
        share, rest = divmod(self.memory_size, task - 1)
        filled = sum(min(size_of(t), share + (t <= rest)) for t in range(1, task))
        return size + filled * self._copies(size)

    def _copies(self, num_samples: int) -> int:
        """Return how often each stored sample stands in an epoch of a task."""
        return max(1, num_samples // self.memory_size)

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Add a memory batch to each batch, or shuffle the memory into them."""
        if self.rehearsal == "batch":
            return super().plan_epoch(task, epoch, num_samples)
        filled = self.memory.filled
        total = num_samples + filled * self._copies(num_samples)
        # Past ReplayOptions: plain batches of an epoch with so many samples.
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

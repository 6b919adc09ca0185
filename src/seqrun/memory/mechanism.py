"""MemoryMechanism: a budget, a policy, and the plan of every read and write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError, one_of, whole
from seqrun.memory.policies import (
    POLICIES,
    class_balanced_rows,
    herding_rows,
    random_rows,
    ring_rows,
)
from seqrun.plan import RandomStreams


@dataclass(kw_only=True, eq=False)
class MemoryMechanism:
    """Keep samples of past tasks within a budget, and plan what is replayed.

    During a task, plan indices point into one read-only pool: the task's training data, then the
    memory as it stood at the task's start. The plan knows which sample occupies which slot after
    every step, so nothing is copied while training; the memory proper is made at the task's end.

    Args:
        policy: one of POLICIES.
        memory_size: samples in all, >= 1; exactly one of it and per_task_memory_samples is given.
        per_task_memory_samples: samples of each task, >= 1 (not with reservoir).
        observe: "first_epoch", a reservoir counts each sample once per task, or "every_epoch".

    Attributes:
        data: the stored samples, un-augmented, by slot; (filled, ...) arrays.
        seen: samples that the reservoir has been offered.

    Raises:
        ConfigError: a value out of range, or both or no budget.
    """

    policy: str
    memory_size: int | None = None
    per_task_memory_samples: int | None = None
    observe: str = "first_epoch"

    data: Dataset | None = field(init=False, default=None)
    seen: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        one_of("policy", self.policy, POLICIES)
        one_of("observe", self.observe, ("first_epoch", "every_epoch"))
        if (self.memory_size is None) == (self.per_task_memory_samples is None):
            raise ConfigError(
                f"memory_size={self.memory_size}, per_task_memory_samples="
                f"{self.per_task_memory_samples}: exactly one must be given"
            )
        if self.memory_size is not None:
            whole("memory_size", self.memory_size, 1)
        if self.per_task_memory_samples is not None:
            whole("per_task_memory_samples", self.per_task_memory_samples, 1)
            if self.policy == "reservoir":
                raise ConfigError(
                    "per_task_memory_samples: a reservoir has a memory_size for all tasks"
                )

    # ---- a task

    @property
    def filled(self) -> int:
        """Number of stored samples."""
        return 0 if self.data is None else len(self.data.y)

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored samples."""
        return 0 if self.data is None else sum(a.nbytes for a in self.data)

    def start_task(self, current: Dataset) -> Dataset:
        """Return the pool: `current`, then the memory; forget the last task's plan."""
        offset = len(current.y)
        # slot -> row of the pool
        self._occupant = np.arange(offset, offset + self.filled, dtype=np.int32)
        if self.data is None:
            return current
        return Dataset(*(np.concatenate(pair) for pair in zip(current, self.data, strict=True)))

    def plan_epoch(
        self,
        parts: list[dict[str, np.ndarray]],
        streams: RandomStreams,
        task: int,
        epoch: int,
        batch_sizes: dict[str, int],
    ) -> list[dict[str, np.ndarray]]:
        """Add reads, and for a reservoir writes, to an epoch's plan.

        A step reads before it writes. Each read draws without replacement, as many as there are
        up to the batch size asked for, so that parts are cut where a shape changes.

        Args:
            parts: plan arrays with "index".
            streams: the stream "memory" is used.
            task, epoch: 1-based.
            batch_sizes: name of a read, such as "replay" -> samples per step.

        Returns:
            Parts with "<name>" (steps, R) rows of the pool and "<name>_slot" (steps, R) slots per
            read and, for a reservoir, "write_slot" (steps, B): the slot that each sample of the
            batch is written to; memory_size = none (where two go to one slot, the later wins).
        """
        generator = streams.generator("memory", task, epoch)
        writes = self.policy == "reservoir" and (epoch == 1 or self.observe == "every_epoch")
        planned = []
        for part in parts:
            steps = [
                self._plan_step(index, generator, writes, batch_sizes) for index in part["index"]
            ]
            filled = np.array([len(step[next(iter(batch_sizes))]) for step in steps])
            cuts = [0, *(np.flatnonzero(np.diff(filled)) + 1), len(steps)]
            for start, stop in zip(cuts, cuts[1:], strict=False):
                piece = {name: a[start:stop] for name, a in part.items()}
                piece |= {
                    name: np.stack([step[name] for step in steps[start:stop]]) for name in steps[0]
                }
                planned.append(piece)
        return planned

    def _plan_step(
        self,
        index: np.ndarray,
        generator: np.random.Generator,
        writes: bool,
        batch_sizes: dict[str, int],
    ) -> dict[str, np.ndarray]:
        plan = {}
        filled = len(self._occupant)
        for name, size in batch_sizes.items():
            slots = generator.choice(filled, min(size, filled), replace=False) if filled else []
            plan[f"{name}_slot"] = np.asarray(slots, np.int32)
            plan[name] = self._occupant[plan[f"{name}_slot"]]
        if self.policy == "reservoir":
            slots = self._reservoir_slots(len(index), generator) if writes else None
            plan["write_slot"] = self._write(index, slots)
        return plan

    def _reservoir_slots(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return the slot of each next sample: sample n stays with probability M / n (Vitter)."""
        size = self.memory_size
        assert size is not None
        n = self.seen + np.arange(count)  # samples before each
        self.seen += count
        drawn = generator.integers(0, n + 1)
        return np.where(n < size, n, np.where(drawn < size, drawn, size)).astype(np.int32)

    def _write(self, index: np.ndarray, slots: np.ndarray | None) -> np.ndarray:
        size = self.memory_size
        assert size is not None
        if slots is None:
            return np.full(len(index), size, np.int32)
        newly = int(min(self.seen, size))
        if newly > len(self._occupant):
            grown = np.zeros(newly - len(self._occupant), np.int32)
            self._occupant = np.concatenate([self._occupant, grown])
        kept = slots.copy()
        last = {int(slot): i for i, slot in enumerate(slots)}
        for i, slot in enumerate(slots):
            if slot < size and last[int(slot)] == i:
                self._occupant[slot] = index[i]
            else:
                kept[i] = size
        return kept

    def end_task(
        self,
        pool: Dataset,
        num_current: int,
        task: int,
        streams: RandomStreams,
        order: np.ndarray,
        features: np.ndarray | None = None,
    ) -> None:
        """Make the memory as it stands after the task.

        Args:
            pool: what `start_task` returned.
            num_current: samples of the task; the pool's first rows.
            task: 1-based.
            streams: the stream "memory" is used.
            order: rows of the task in the order in which they were last seen (ring).
            features: (num_current, D) features of the task's samples (herding).
        """
        if self.policy == "reservoir":
            self.data = pool.rows(self._occupant.copy())
            return
        y = pool.y[:num_current]
        generator = streams.generator("memory", task, 0)
        if self.policy == "ring":
            rows = ring_rows(y, order)
        elif self.policy == "class_balanced":
            rows = class_balanced_rows(y, generator)
        elif self.policy == "random":
            rows = random_rows(y, generator)
        else:
            assert features is not None
            rows = herding_rows(y, features)
        kept = [] if self.data is None else self._shrunk(task)
        added = pool.rows(rows[: self._room(task, task)])
        kept.append(added)
        self.data = Dataset(*(np.concatenate(arrays) for arrays in zip(*kept, strict=True)))

    def _room(self, task: int, num_tasks: int) -> int:
        """Return the samples of `task` that are kept after `num_tasks` tasks."""
        if self.per_task_memory_samples is not None:
            return self.per_task_memory_samples
        assert self.memory_size is not None
        share, rest = divmod(self.memory_size, num_tasks)
        return share + (task <= rest)

    def _shrunk(self, num_tasks: int) -> list[Dataset]:
        """Return past tasks' samples, each cut to its share: the first ones are worth most."""
        assert self.data is not None
        pieces = []
        for t in np.unique(self.data.t):
            rows = np.flatnonzero(self.data.t == t)
            pieces.append(self.data.rows(rows[: self._room(int(t) + 1, num_tasks)]))
        return pieces

    # ---- as data

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Return the memory by name; no samples are an absent memory."""
        named = {"seen": np.asarray(self.seen)}
        if self.data is not None:
            named |= {name: array for name, array in self.data._asdict().items()}
        return named

    def import_arrays(self, arrays: dict[str, Any]) -> None:
        """Undo `export_arrays`."""
        self.seen = int(arrays["seen"])
        self.data = Dataset(arrays["x"], arrays["y"], arrays["t"]) if "x" in arrays else None

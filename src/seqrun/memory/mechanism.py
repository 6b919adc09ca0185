"""MemoryMechanism: a budget, a policy, and the plan of every read and write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from seqrun.checks import ConfigError, one_of, whole
from seqrun.dataset import Dataset
from seqrun.memory.draws import MemoryDraw, distinct, reservoir_slots
from seqrun.memory.policies import (
    POLICIES,
    class_balanced_rows,
    herding_rows,
    random_rows,
    rank_in_group,
    ring_rows,
)
from seqrun.plan import RandomStreams

PlanArrays = dict[str, np.ndarray]


@dataclass(kw_only=True, eq=False)
class MemoryMechanism:
    """Keep samples of a stream within a budget, and plan what is replayed.

    During a task, plan indices point into one read-only pool: the task's training data, then the
    memory as it stood at the task's start. The plan knows which sample is in which slot after
    every step, so nothing is copied while training; `data` is made at the task's end. What is
    planned within a task depends on `data` and `seen` of its start alone: a run that continues
    from there plans the task's epochs again, from the first.

    A memory_size is shared by the tasks so far, as evenly as can be (the first ones have one more
    where it does not divide); by a reservoir, as chance has it; with herding, by the classes
    of each task, and a rest is left free.

    Args:
        policy: one of POLICIES.
        memory_size: samples in all, >= 1; exactly one of it and per_task_memory_samples is given.
        per_task_memory_samples: samples of each task, >= 1 (not with a reservoir).
        observe: "first_epoch": a reservoir counts each sample once per task; or "every_epoch".
        glances: steps in a row on the same batch, >= 1; a reservoir is offered it at the first.

    Attributes:
        data: the stored samples, un-augmented; a reservoir's by slot, others by task, the ones
            of most worth first; None until a task has ended.
        seen: samples that the reservoir was offered in the tasks that have ended.

    Raises:
        ConfigError: a value out of range, or both or no budget.
    """

    policy: str
    memory_size: int | None = None
    per_task_memory_samples: int | None = None
    observe: str = "first_epoch"
    glances: int = 1

    data: Dataset | None = field(init=False, default=None)
    seen: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        one_of("policy", self.policy, POLICIES)
        one_of("observe", self.observe, ("first_epoch", "every_epoch"))
        whole("glances", self.glances, 1)
        if (self.memory_size is None) == (self.per_task_memory_samples is None):
            raise ConfigError(
                f"memory_size={self.memory_size}, per_task_memory_samples="
                f"{self.per_task_memory_samples}: exactly one must be given"
            )
        if self.memory_size is not None:
            whole("memory_size", self.memory_size, 1)
        else:
            whole("per_task_memory_samples", self.per_task_memory_samples, 1)
            if self.policy == "reservoir":
                raise ConfigError(
                    f"per_task_memory_samples={self.per_task_memory_samples}: must be null with "
                    "policy='reservoir', which has a memory_size for all tasks"
                )

    @property
    def filled(self) -> int:
        """Number of stored samples."""
        return 0 if self.data is None else len(self.data.y)

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored samples."""
        return 0 if self.data is None else sum(a.nbytes for a in self.data)

    def capacity(self, num_tasks: int) -> int:
        """Return the most samples that may be stored after `num_tasks` tasks."""
        if self.per_task_memory_samples is not None:
            return self.per_task_memory_samples * num_tasks
        return self.total_size

    @property
    def total_size(self) -> int:
        """memory_size, of a memory that all tasks share.

        Raises:
            ValueError: each task has its own samples.
        """
        if self.memory_size is None:
            raise ValueError("memory_size is None: the memory has per_task_memory_samples")
        return self.memory_size

    # ---- a task

    def start_task(self, current: Dataset, num_tasks: int) -> Dataset:
        """Return the pool: `current`, then the memory, then room for a full one.

        The room gives the pools of all tasks one shape, so that JAX compiles their steps once.

        Args:
            current: the task's training data.
            num_tasks: length of the stream.
        """
        capacity = self.capacity(num_tasks)
        room = capacity - self.filled
        stored = [] if self.data is None else [self.data]
        free = Dataset(*(np.zeros((room, *a.shape[1:]), a.dtype) for a in current))
        self._num_current = len(current.y)
        self._pool = Dataset(*map(np.concatenate, zip(current, *stored, free, strict=True)))
        self._offered = self.seen
        # slot -> row of the pool; the last entry takes what is not kept
        self._occupant = self._num_current + np.arange(capacity + 1, dtype=np.int32)
        return self._pool

    def plan_epoch(
        self,
        parts: list[PlanArrays],
        streams: RandomStreams,
        task: int,
        epoch: int,
        batch_sizes: Mapping[str, int],
    ) -> list[PlanArrays]:
        """Add reads, and for a reservoir writes, to an epoch's plan; to be called epoch by epoch.

        A step reads before it writes. Each read draws without replacement, as many as there are
        up to the batch size asked for, so that parts are cut where a shape changes. The reads of
        a step are independent; a reservoir's writes depend on neither their number nor size.

        Args:
            parts: plan arrays with "index" (steps, B).
            streams: the stream "memory" is used.
            task, epoch: 1-based.
            batch_sizes: name of a read, such as "replay" -> samples per step.

        Returns:
            Parts with, for each read, "<name>" (steps, R) int32 rows of the pool and
            "<name>_slot" (steps, R) int32 slots and, for a reservoir, "write_slot" (steps, B)
            int32: the slot that each sample of the batch is written to, memory_size = none.
            Where two samples of a batch go to one slot, the later is written.
        """
        writes = streams.generator("memory", MemoryDraw.WRITES, task, epoch)
        reads = {
            name: streams.generator("memory", MemoryDraw.READS, task, epoch, number)
            for number, name in enumerate(batch_sizes, 1)
        }
        writing = self.policy == "reservoir" and (epoch == 1 or self.observe == "every_epoch")
        largest = max(batch_sizes.values(), default=0)
        planned = []
        for part in parts:
            steps, width = part["index"].shape
            filled = self._filled_before(steps, width if writing else 0)
            if self.policy == "reservoir":
                part = part | {"write_slot": self._write_slots(steps, width, writing, writes)}
            cuts = np.flatnonzero(np.diff(np.minimum(filled, largest))) + 1
            for start, stop in zip([0, *cuts], [*cuts, steps], strict=True):
                piece = {name: a[start:stop] for name, a in part.items()}
                for name, size in batch_sizes.items():
                    count = min(size, int(filled[start]))
                    piece[f"{name}_slot"] = distinct(filled[start:stop], count, reads[name])
                self._follow(piece, batch_sizes)
                planned.append(piece)
        self._order = np.concatenate([part["index"].ravel() for part in parts])
        return planned

    def _filled_before(self, steps: int, offered_per_step: int) -> np.ndarray:
        """Return the (steps,) number of samples that are stored before each step."""
        if self.policy != "reservoir":
            return np.full(steps, self.filled)
        batches = -(-np.arange(steps) // self.glances)  # those offered before each step
        return np.minimum(self._offered + offered_per_step * batches, self.total_size)

    def _write_slots(
        self, steps: int, width: int, writing: bool, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the (steps, width) slots that an epoch's samples are offered."""
        slots = np.full((steps, width), self.total_size, np.int32)
        if writing:
            first = slots[:: self.glances]
            drawn = reservoir_slots(self._offered, first.size, self.total_size, rng)
            first[:] = drawn.reshape(first.shape)
            self._offered += first.size
        return slots

    def _follow(self, piece: PlanArrays, reads: Mapping[str, int]) -> None:
        """Go through the steps: find what is in each slot that is read, then write."""
        slots = [piece[f"{name}_slot"] for name in reads]
        rows = [np.empty_like(of_read) for of_read in slots]
        writes = piece.get("write_slot")
        winner = np.empty(len(self._occupant), np.int64)
        place = np.arange(piece["index"].shape[1])
        for s, index in enumerate(piece["index"]):
            for found, slot in zip(rows, slots, strict=True):
                found[s] = self._occupant[slot[s]]
            if writes is not None:
                to = writes[s]
                winner[to] = place  # NumPy keeps the last
                to[winner[to] != place] = self.total_size
                self._occupant[to] = index
        piece.update(zip(reads, rows, strict=True))

    def end_task(
        self, task: int, streams: RandomStreams, features: np.ndarray | None = None
    ) -> None:
        """Make the memory as it stands after the task.

        Args:
            task: 1-based.
            streams: the stream "memory" is used.
            features: (samples of the task, D) float, for herding.
        """
        if self.policy == "reservoir":
            self.seen = self._offered
            rows = self._occupant[: min(self.seen, self.total_size)]
            self.data = self._pool.rows(rows)
            return
        added = self._pool.rows(self._selected(task, streams, features))
        past = [] if self.data is None else [self.data]
        joined = Dataset(*map(np.concatenate, zip(*past, added, strict=True)))
        self.data = joined.rows(self._within_budget(joined))

    def _selected(
        self, task: int, streams: RandomStreams, features: np.ndarray | None
    ) -> np.ndarray:
        """Return the rows of the task that are worth most, as many as may ever be kept."""
        most = self.capacity(1)
        y = self._pool.y[: self._num_current]
        rng = streams.generator("memory", MemoryDraw.SELECTION, task)
        if self.policy == "ring":
            return ring_rows(y, self._order)[:most]
        if self.policy == "class_balanced":
            return class_balanced_rows(y, rng)[:most]
        if self.policy == "random":
            return random_rows(y, rng)[:most]
        if features is None:
            raise ValueError("herding needs the features of the task's samples")
        return herding_rows(y, features, most)[:most]

    def _within_budget(self, joined: Dataset) -> np.ndarray:
        """Return the rows that stay: of each task, the ones of most worth."""
        if self.per_task_memory_samples is not None:
            return np.arange(len(joined.y))
        by_class = self.policy == "herding"
        groups = joined.t * (1 + int(joined.y.max())) + joined.y if by_class else joined.t
        _, group = np.unique(groups, return_inverse=True)
        share, rest = divmod(self.total_size, int(group.max()) + 1)
        room = share if by_class else share + (group < rest)
        return np.flatnonzero(rank_in_group(group) < room)

    # ---- as data

    def export_progress(self) -> dict[str, np.ndarray]:
        """Return how far the current task's epochs have been planned, besides `export_arrays`."""
        order = getattr(self, "_order", np.empty(0, np.int32))
        return {"occupant": self._occupant, "offered": np.asarray(self._offered), "order": order}

    def import_progress(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Undo `export_progress`, after `start_task` with the same task's data."""
        self._occupant = np.array(arrays["occupant"])
        self._offered = int(arrays["offered"])
        self._order = np.array(arrays["order"])

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Return the memory of the last task's end by name; no samples are an absent memory."""
        stored = {} if self.data is None else self.data._asdict()
        return {"seen": np.asarray(self.seen), **stored}

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Undo `export_arrays`."""
        self.seen = int(arrays["seen"])
        self.data = Dataset(arrays["x"], arrays["y"], arrays["t"]) if "x" in arrays else None

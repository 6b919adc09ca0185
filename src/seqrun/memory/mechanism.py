"""MemoryMechanism: a budget, a policy, and the plan of all replay batches and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from seqrun.checks import ConfigError, one_of, whole
from seqrun.memory.policies import (
    POLICIES,
    class_balanced_rows,
    herding_rows,
    random_rows,
    rank_in_group,
    ring_rows,
)
from seqrun.memory.reservoir import MemoryDraw, distinct, reservoir_slots
from seqrun.plan import Dataset, RandomStreams

PlanArrays = dict[str, np.ndarray]


@dataclass(kw_only=True, eq=False)
class MemoryMechanism:
    """Store samples of a stream within a budget, and plan what is replayed.

    During a task, plan indices point into one read-only replay dataset: the task's training data,
    then the memory as it was at the start of the task. The plan knows which sample is in which slot
    after every step, so nothing is copied while training; `data` is updated at the end of the task.
    The plan of a task depends only on `data` and `seen` at the start of the task, so a run that is
    resumed within a task plans the task's epochs again from the first.

    The tasks so far share memory_size evenly; if it does not divide, the first tasks store one
    sample more. In a reservoir the shares are random. With herding, memory_size is shared by the
    classes of all tasks, and the remainder stays unused.

    Args:
        policy: one of POLICIES.
        memory_size: total number of samples, >= 1; give either this or per_task_memory_samples.
        per_task_memory_samples: samples of each task, >= 1 (not with a reservoir).
        observe: when samples are offered to a reservoir: in the "first_epoch" of a task, or in
            "every_epoch".
        glances: consecutive steps on the same batch, >= 1; only the first offers it to a reservoir.

    Attributes:
        data: the stored samples, without augmentation, ordered by slot in a reservoir, otherwise by
            task and priority; None until a task has ended.
        seen: number of samples offered to the reservoir in the tasks that have ended.

    Raises:
        ConfigError: a value out of range, or not exactly one budget.
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
        """Return the maximum number of samples stored after `num_tasks` tasks."""
        if self.per_task_memory_samples is not None:
            return self.per_task_memory_samples * num_tasks
        return self.total_size

    @property
    def total_size(self) -> int:
        """The memory_size that all tasks share.

        Raises:
            ValueError: the budget is per task.
        """
        if self.memory_size is None:
            raise ValueError("memory_size is None: the memory has per_task_memory_samples")
        return self.memory_size

    # ---- a task

    def start_task(self, current: Dataset, num_tasks: int) -> Dataset:
        """Return the replay dataset: `current`, then the memory, padded to the full memory's size.

        The padding gives the datasets of all tasks the same shape, so that JAX compiles once.

        Args:
            current: the task's training data.
            num_tasks: length of the stream.
        """
        capacity = self.capacity(num_tasks)
        room = capacity - self.filled
        stored = [] if self.data is None else [self.data]
        padding = Dataset(*(np.zeros((room, *a.shape[1:]), a.dtype) for a in current))
        self._num_current = len(current.y)
        parts = zip(current, *stored, padding, strict=True)
        self._replay_dataset = Dataset(*map(np.concatenate, parts))
        self._offered = self.seen
        self._order: np.ndarray = np.empty(0, np.int32)
        # slot -> row of the replay dataset; the last entry stands for samples that are not stored
        self._occupant = self._num_current + np.arange(capacity + 1, dtype=np.int32)
        return self._replay_dataset

    def plan_epoch(
        self,
        segments: list[PlanArrays],
        streams: RandomStreams,
        task: int,
        epoch: int,
        batch_sizes: Mapping[str, int],
    ) -> list[PlanArrays]:
        """Add replay batches, and a reservoir's writes, to an epoch's plan; call it every epoch.

        A step reads before it writes. Each replay batch is drawn without replacement. It is smaller
        than requested while the memory holds fewer samples, so segments are split where a shape
        changes. The replay batches of a step are independent of each other, and a reservoir's
        writes depend on neither their number nor their size.

        Args:
            segments: plan arrays with "index" (steps, B).
            streams: the stream "memory" is used.
            task, epoch: 1-based.
            batch_sizes: name of a replay batch, such as "replay" -> samples per step.

        Returns:
            Segments with, for each replay batch, "<name>" (steps, R) int32 rows of the replay
            dataset and "<name>_slot" (steps, R) int32 slots and, for a reservoir, "write_slot"
            (steps, B) int32: the slot that each sample is written to; memory_size = not stored.
            If two samples of a batch are assigned one slot, only the later one is written.
        """
        writes = streams.generator("memory", MemoryDraw.WRITES, task, epoch)
        batches = {
            name: streams.generator("memory", MemoryDraw.BATCHES, task, epoch, number)
            for number, name in enumerate(batch_sizes, 1)
        }
        writing = self.policy == "reservoir" and (epoch == 1 or self.observe == "every_epoch")
        largest = max(batch_sizes.values(), default=0)
        planned = []
        for segment in segments:
            steps, width = segment["index"].shape
            filled = self._filled_before(steps, width if writing else 0)
            if self.policy == "reservoir":
                segment = segment | {"write_slot": self._write_slots(steps, width, writing, writes)}
            cuts = np.flatnonzero(np.diff(np.minimum(filled, largest))) + 1
            for start, stop in zip([0, *cuts], [*cuts, steps], strict=True):
                part = {name: a[start:stop] for name, a in segment.items()}
                for name, size in batch_sizes.items():
                    count = min(size, int(filled[start]))
                    part[f"{name}_slot"] = distinct(filled[start:stop], count, batches[name])
                self._simulate(part, batch_sizes)
                planned.append(part)
        order = np.concatenate([segment["index"].ravel() for segment in segments])
        # This one may be cut short: what it lacks was seen last in those before.
        self._order = np.concatenate([self._order[~np.isin(self._order, order)], order])
        return planned

    def _filled_before(self, steps: int, offered_per_step: int) -> np.ndarray:
        """Return (steps,): the number of samples stored before each step."""
        if self.policy != "reservoir":
            return np.full(steps, self.filled)
        batches = -(-np.arange(steps) // self.glances)  # batches offered before each step
        return np.minimum(self._offered + offered_per_step * batches, self.total_size)

    def _write_slots(
        self, steps: int, width: int, writing: bool, rng: np.random.Generator
    ) -> np.ndarray:
        """Return (steps, width): the slot of each sample of an epoch."""
        slots = np.full((steps, width), self.total_size, np.int32)
        if writing:
            first = slots[:: self.glances]
            drawn = reservoir_slots(self._offered, first.size, self.total_size, rng)
            first[:] = drawn.reshape(first.shape)
            self._offered += first.size
        return slots

    def _simulate(self, part: PlanArrays, batches: Mapping[str, int]) -> None:
        """At each step look up the rows in the slots that are read, then apply the writes."""
        slots = [part[f"{name}_slot"] for name in batches]
        rows = [np.empty_like(slot) for slot in slots]
        writes = part.get("write_slot")
        last = np.empty(len(self._occupant), np.int64)
        position = np.arange(part["index"].shape[1])
        for s, index in enumerate(part["index"]):
            for row, slot in zip(rows, slots, strict=True):
                row[s] = self._occupant[slot[s]]
            if writes is not None:
                to = writes[s]
                last[to] = position  # of several writes to a slot, NumPy keeps the last
                to[last[to] != position] = self.total_size
                self._occupant[to] = index
        part.update(zip(batches, rows, strict=True))

    def end_task(
        self, task: int, streams: RandomStreams, features: np.ndarray | None = None
    ) -> None:
        """Update `data` to the memory at the end of the task.

        Args:
            task: 1-based.
            streams: the stream "memory" is used.
            features: (samples of the task, D) float, for herding.
        """
        if self.policy == "reservoir":
            self.seen = self._offered
            rows = self._occupant[: min(self.seen, self.total_size)]
            self.data = self._replay_dataset.rows(rows)
            return
        added = self._replay_dataset.rows(self._selected(task, streams, features))
        past = [] if self.data is None else [self.data]
        joined = Dataset(*map(np.concatenate, zip(*past, added, strict=True)))
        self.data = joined.rows(self._within_budget(joined))

    def _selected(
        self, task: int, streams: RandomStreams, features: np.ndarray | None
    ) -> np.ndarray:
        """Return the task's rows of highest priority, as many as an empty memory could hold."""
        limit = self.capacity(1)
        y = self._replay_dataset.y[: self._num_current]
        rng = streams.generator("memory", MemoryDraw.SELECTION, task)
        if self.policy == "ring":
            return ring_rows(y, self._order)[:limit]
        if self.policy == "class_balanced":
            return class_balanced_rows(y, rng)[:limit]
        if self.policy == "random":
            return random_rows(y, rng)[:limit]
        if features is None:
            raise ValueError("herding needs the features of the task's samples")
        return herding_rows(y, features, limit)[:limit]

    def _within_budget(self, joined: Dataset) -> np.ndarray:
        """Return the rows that are kept: those of highest priority of each task (or class)."""
        if self.per_task_memory_samples is not None:
            return np.arange(len(joined.y))
        by_class = self.policy == "herding"
        groups = joined.t * (1 + int(joined.y.max())) + joined.y if by_class else joined.t
        _, group = np.unique(groups, return_inverse=True)
        share, rest = divmod(self.total_size, int(group.max()) + 1)
        room = share if by_class else share + (group < rest)
        return np.flatnonzero(rank_in_group(group) < room)

    # ---- checkpoints

    def export_progress(self) -> dict[str, np.ndarray]:
        """Return the state within the current task, as far as it is planned."""
        offered = np.asarray(self._offered)
        return {"occupant": self._occupant, "offered": offered, "order": self._order}

    def import_progress(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore `export_progress`; call it after `start_task` with the same task's data."""
        self._occupant = np.array(arrays["occupant"])
        self._offered = int(arrays["offered"])
        self._order = np.array(arrays["order"])

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Return name -> array of the memory at the last task's end; only "seen" if it is empty."""
        stored = {} if self.data is None else self.data._asdict()
        return {"seen": np.asarray(self.seen), **stored}

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore `export_arrays`."""
        self.seen = int(arrays["seen"])
        self.data = Dataset(arrays["x"], arrays["y"], arrays["t"]) if "x" in arrays else None

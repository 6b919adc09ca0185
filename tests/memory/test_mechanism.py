"""MemoryMechanism: budgets, planned reads and writes, and export."""

from __future__ import annotations

import numpy as np
import pytest
from memory.streams import SAMPLE_BYTES, batches, numbers_of, samples, walk

from seqrun.checks import ConfigError
from seqrun.memory import POLICIES, MemoryMechanism
from seqrun.memory.reservoir import MemoryDraw, reservoir_slots
from seqrun.plan import RandomStreams

SIZES = (20, 9, 31, 17)
SELECTED_AT_TASK_END = tuple(p for p in POLICIES if p != "reservoir")


def planned(memory: MemoryMechanism, size: int = 33, epoch: int = 1, **reads: int) -> list[dict]:
    """Return the plan of an epoch of task 1 in batches of 5."""
    streams = RandomStreams(3)
    if epoch == 1:
        memory.start_task(samples(1, size), 2)
    parts = batches(streams, 1, epoch, size, 5)
    return memory.plan_epoch(parts, streams, 1, epoch, reads)


# ---- budgets


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", [1, 3, 10, 29, 1000])
def test_a_total_budget_is_never_exceeded(policy: str, budget: int):
    memory = MemoryMechanism(policy=policy, memory_size=budget)
    for task in walk(memory, SIZES):
        assert memory.filled <= min(budget, sum(SIZES[:task]))
        assert memory.num_bytes == memory.filled * SAMPLE_BYTES <= budget * SAMPLE_BYTES
        if policy == "reservoir":
            assert memory.filled == min(budget, sum(SIZES[:task]))


@pytest.mark.parametrize("policy", SELECTED_AT_TASK_END)
@pytest.mark.parametrize("budget", [1, 4, 15, 1000])
def test_a_budget_per_task_is_per_task_not_per_class(policy: str, budget: int):
    memory = MemoryMechanism(policy=policy, per_task_memory_samples=budget)
    for task in walk(memory, SIZES):
        counts = np.bincount(memory.data.t)
        assert counts.tolist() == [min(budget, size) for size in SIZES[:task]]
        assert memory.filled <= memory.capacity(task)


@pytest.mark.parametrize("policy", ["ring", "class_balanced", "random"])
def test_tasks_share_a_total_budget_evenly(policy: str):
    memory = MemoryMechanism(policy=policy, memory_size=14)
    shares = [np.bincount(memory.data.t).tolist() for _ in walk(memory, (20, 20, 20, 20))]
    assert shares == [[14], [7, 7], [5, 5, 4], [4, 4, 3, 3]]


def test_classes_share_a_total_budget_with_herding():
    """14 samples are shared as 4 of each of 3 classes, then as 2 of each of 6."""
    memory = MemoryMechanism(policy="herding", memory_size=14)
    counts = []
    for _ in walk(memory, (20, 20)):
        counts.append(np.bincount(3 * memory.data.t + memory.data.y).tolist())
    assert counts == [[4, 4, 4], [2, 2, 2, 2, 2, 2]]


@pytest.mark.parametrize("policy", SELECTED_AT_TASK_END)
def test_a_smaller_memory_is_a_prefix(policy: str):
    """Later, or in a smaller memory, the first samples of the first task are kept."""
    memory = MemoryMechanism(policy=policy, memory_size=12)
    small = MemoryMechanism(policy=policy, memory_size=6)
    before: list = []
    for task, _ in zip(walk(memory, SIZES), walk(small, SIZES), strict=True):
        kept = numbers_of(memory.data)
        of_first = kept[kept[:, 0] == 0].tolist()
        if task == 1:
            assert numbers_of(small.data).tolist() == of_first[:6]
        else:
            assert of_first == before[: len(of_first)]
        before = of_first


@pytest.mark.parametrize("policy", POLICIES)
def test_samples_are_stored_as_they_are_and_once(policy: str):
    memory = MemoryMechanism(policy=policy, memory_size=25)
    for _ in walk(memory, SIZES):
        kept = numbers_of(memory.data)
        assert len(np.unique(kept, axis=0)) == len(kept)
    for stored, (task, number) in zip(zip(*memory.data, strict=True), kept, strict=True):
        original = samples(task + 1, SIZES[task]).rows(np.array([number]))
        assert all(np.array_equal(a, b[0]) for a, b in zip(stored, original, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_random_choices_depend_on_the_seed(policy: str):
    kept = []
    for seed in (0, 0, 1):
        memory = MemoryMechanism(policy=policy, memory_size=10)
        list(walk(memory, SIZES, seed))
        kept.append(numbers_of(memory.data).tolist())
    assert kept[0] == kept[1]
    assert (kept[0] == kept[2]) == (policy == "herding")


def test_a_ring_holds_the_last_samples_of_the_last_epoch():
    memory = MemoryMechanism(policy="ring", per_task_memory_samples=6)
    list(walk(memory, (20,), epochs=3))
    streams = RandomStreams(0)
    order = np.concatenate([p["index"].ravel() for p in batches(streams, 1, 3, 20, 7)])
    y = samples(1, 20).y
    expected = {row for c in range(3) for row in order[y[order] == c][-2:]}
    assert set(numbers_of(memory.data)[:, 1]) == expected


# ---- the plan


def test_reads_and_writes_match_a_memory_that_is_really_written():
    """A step reads, then writes sample by sample, so that later samples overwrite earlier ones."""
    streams, size, width = RandomStreams(5), 6, 9
    memory = MemoryMechanism(policy="reservoir", memory_size=size, observe="every_epoch")
    literal = np.full((size, 2), -1)
    offered = collisions = 0
    for task in (1, 2, 3):
        replay_dataset = memory.start_task(samples(task, 40), 3)
        numbers = numbers_of(replay_dataset)
        for epoch in (1, 2):
            parts = memory.plan_epoch(
                batches(streams, task, epoch, 40, width), streams, task, epoch, {"replay": 4}
            )
            rng = streams.generator("memory", MemoryDraw.WRITES, task, epoch)
            for part in parts:
                for s, index in enumerate(part["index"]):
                    assert len(part["replay"][s]) == min(4, offered)
                    expected = literal[part["replay_slot"][s]]
                    assert np.array_equal(numbers[part["replay"][s]], expected)
                    slots = reservoir_slots(offered, len(index), size, rng)
                    offered += len(index)
                    for row, slot in zip(index, slots, strict=True):
                        if slot < size:
                            literal[slot] = numbers[row]
                    written = part["write_slot"][s][part["write_slot"][s] < size]
                    assert sorted(written) == sorted(set(slots[slots < size]))
                    collisions += (slots < size).sum() - len(written)
        memory.end_task(task, streams)
        assert np.array_equal(numbers_of(memory.data), literal)
    assert collisions > 0
    assert memory.seen == offered == 240


def test_a_step_reads_before_it_writes():
    """In the first epoch no step reads a sample of its own batch."""
    memory = MemoryMechanism(policy="reservoir", memory_size=12)
    for part in planned(memory, replay=12):
        for index, read in zip(part["index"], part["replay"], strict=True):
            assert not set(index) & set(read)


def test_segments_are_split_where_the_number_of_reads_changes():
    memory = MemoryMechanism(policy="reservoir", memory_size=100)
    parts = planned(memory, replay=12, few=3)
    shapes = [(p["index"].shape, p["replay"].shape, p["few"].shape) for p in parts]
    assert shapes == [
        ((1, 5), (1, 0), (1, 0)),
        ((1, 5), (1, 5), (1, 3)),
        ((1, 5), (1, 10), (1, 3)),
        ((3, 5), (3, 12), (3, 3)),
        ((1, 3), (1, 12), (1, 3)),
    ]
    for part in parts:
        assert {a.dtype for a in part.values()} == {np.dtype(np.int32)}


def test_two_replay_batches_are_independent():
    memory = MemoryMechanism(policy="reservoir", memory_size=30)
    part = planned(memory, size=200, a=8, b=8)[-1]
    assert not np.array_equal(np.sort(part["a_slot"]), np.sort(part["b_slot"]))


def test_writes_do_not_depend_on_reads():
    plans = []
    for reads in ({}, {"replay": 3}, {"replay": 20, "second": 7}):
        memory = MemoryMechanism(policy="reservoir", memory_size=10)
        parts = planned(memory, **reads)
        plans.append(np.concatenate([part["write_slot"].ravel() for part in parts]))
    assert np.array_equal(plans[0], plans[1])
    assert np.array_equal(plans[0], plans[2])


def test_a_sample_is_offered_once_per_task_unless_every_epoch_counts():
    for observe, offered in (("first_epoch", 33), ("every_epoch", 66)):
        memory = MemoryMechanism(policy="reservoir", memory_size=10, observe=observe)
        planned(memory)
        second = np.concatenate([p["write_slot"].ravel() for p in planned(memory, epoch=2)])
        assert (second < 10).any() == (observe == "every_epoch")
        memory.end_task(1, RandomStreams(3))
        assert memory.seen == offered


@pytest.mark.parametrize("policy", SELECTED_AT_TASK_END)
def test_a_memory_that_selects_at_task_ends_reads_past_tasks_only(policy: str):
    streams = RandomStreams(0)
    memory = MemoryMechanism(policy=policy, per_task_memory_samples=6)
    for task in walk(memory, (20, 20)):
        if task == 1:
            break
    replay_dataset = memory.start_task(samples(2, 20), 2)
    for epoch in (1, 2):
        parts = batches(streams, 2, epoch, 20, 7)
        for part in memory.plan_epoch(parts, streams, 2, epoch, {"replay": 4}):
            assert part["replay"].shape[1] == 4
            assert (replay_dataset.t[part["replay"]] == 0).all()
            assert "write_slot" not in part


def test_replay_batches_of_an_empty_memory_are_empty():
    memory = MemoryMechanism(policy="ring", per_task_memory_samples=6)
    assert [part["replay"].shape for part in planned(memory, replay=4)] == [(6, 0), (1, 0)]


@pytest.mark.parametrize(
    "budget", [{"memory_size": 13}, {"per_task_memory_samples": 6}], ids=["total", "per_task"]
)
def test_replay_datasets_of_equal_tasks_have_one_shape(budget: dict):
    memory = MemoryMechanism(policy="class_balanced", **budget)
    shapes = {memory.start_task(samples(1, 20), 3).x.shape}
    for task in walk(memory, (20, 20, 20)):
        shapes.add(memory.start_task(samples(task, 20), 3).x.shape)
        assert memory.filled <= memory.capacity(3)
    assert len(shapes) == 1


# ---- export and import


@pytest.mark.parametrize("policy", POLICIES)
def test_a_memory_continues_from_its_arrays(policy: str):
    spec = {"policy": policy, "memory_size": 11}
    whole, first, second = (MemoryMechanism(**spec) for _ in range(3))
    list(walk(whole, SIZES))
    for task in walk(first, SIZES):
        if task == 2:
            break
    second.import_arrays(first.export_arrays())
    list(walk(second, SIZES, first=3))
    for name, array in whole.export_arrays().items():
        assert np.array_equal(array, second.export_arrays()[name]), name


def test_within_a_task_the_exported_arrays_are_those_of_its_start():
    """A run that is resumed within a task therefore plans its epochs again."""
    memory = MemoryMechanism(policy="reservoir", memory_size=8, observe="every_epoch")
    before = memory.export_arrays()
    planned(memory, replay=3)
    assert memory.export_arrays() == before == {"seen": 0}
    expected = planned(memory, epoch=2, replay=3)
    again = MemoryMechanism(policy="reservoir", memory_size=8, observe="every_epoch")
    again.import_arrays(before)
    planned(again, replay=3)
    for part, same in zip(expected, planned(again, epoch=2, replay=3), strict=True):
        assert all(np.array_equal(part[name], same[name]) for name in part)


# ---- refusals


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"policy": "ring"}, "exactly one"),
        ({"policy": "ring", "memory_size": 3, "per_task_memory_samples": 3}, "exactly one"),
        ({"policy": "ring", "memory_size": 0}, "memory_size=0: must be an integer >= 1"),
        ({"policy": "ring", "per_task_memory_samples": 0}, "per_task_memory_samples=0: must be"),
        ({"policy": "ring", "memory_size": 2.5}, "memory_size=2.5: must be"),
        ({"policy": "reservoir", "per_task_memory_samples": 3}, "must be null with policy="),
        ({"policy": "resevoir", "memory_size": 3}, "did you mean reservoir"),
        ({"policy": "ring", "memory_size": 3, "observe": "once"}, "observe='once': must be one of"),
    ],
)
def test_refusals_name_key_and_value(spec: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        MemoryMechanism(**spec)


def test_herding_requires_features():
    memory = MemoryMechanism(policy="herding", memory_size=4)
    planned(memory)
    with pytest.raises(ValueError, match="features"):
        memory.end_task(1, RandomStreams(0))

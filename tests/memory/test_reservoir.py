"""The slots that a reservoir writes and reads: exact values and uniformity."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from memory.streams import numbers_of, walk
from scipy.stats import chi2

from seqrun.memory import MemoryMechanism
from seqrun.memory.reservoir import distinct, reservoir_slots


def uniformity(counts: np.ndarray, runs: int, size: int) -> float:
    """Return the p-value of the hypothesis that all N samples are equally likely to be kept.

    Each run keeps exactly `size` of the N samples. The counts have variance runs q (1 - q) and a
    constant sum, so the sum of their normalised squares, times (N - 1) / N, is chi-squared with
    N - 1 degrees of freedom.
    """
    total = len(counts)
    q = size / total
    squares = ((counts - runs * q) ** 2).sum() / (runs * q * (1 - q))
    return float(chi2.sf(squares * (total - 1) / total, total - 1))


def kept_by(slots: np.ndarray, size: int) -> list[int]:
    """Write samples one by one, as in Vitter's algorithm; return the samples that are kept."""
    memory: dict[int, int] = {}
    for sample, slot in enumerate(slots):
        if slot < size:
            memory[int(slot)] = sample
    return list(memory.values())


def test_first_samples_fill_the_slots_in_order():
    slots = reservoir_slots(0, 6, 4, np.random.default_rng(0))
    assert slots.dtype == np.int32
    assert slots[:4].tolist() == [0, 1, 2, 3]
    assert ((slots[4:] >= 0) & (slots[4:] <= 4)).all()


@pytest.mark.ci
def test_the_nth_sample_is_kept_with_probability_size_over_n():
    """Sample 8 enters a reservoir of 4 with probability 4/8, not 4/9."""
    runs, rng = 20_000, np.random.default_rng(1)
    kept = sum(int(reservoir_slots(7, 1, 4, rng)[0] < 4) for _ in range(runs))
    assert abs(kept / runs - 4 / 8) < 4 * np.sqrt(0.25 / runs) < 4 / 8 - 4 / 9


@pytest.mark.ci
def test_reservoir_is_uniform_over_the_stream():
    """Over three tasks in batches of 7, where several samples of a batch may get one slot."""
    runs, sizes, size = 1000, (11, 16, 13), 5
    starts = np.cumsum([0, *sizes[:-1]])
    counts = np.zeros(sum(sizes))
    for seed in range(runs):
        memory = MemoryMechanism(policy="reservoir", memory_size=size)
        for _ in walk(memory, sizes, seed):
            pass
        tasks, numbers = numbers_of(memory.data).T
        assert len(np.unique(starts[tasks] + numbers)) == size
        counts[starts[tasks] + numbers] += 1
    assert uniformity(counts, runs, size) > 1e-3


def test_uniformity_detects_a_wrong_reservoir():
    """Keeping samples with probability M / (N + 1) is detected with this number of seeds."""
    runs, total, size = 2000, 40, 5
    right, wrong = np.zeros(total), np.zeros(total)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        right[kept_by(reservoir_slots(0, total, size, rng), size)] += 1
        before = np.arange(total)
        drawn = np.minimum(rng.integers(0, before + 2), size)
        wrong[kept_by(np.where(before < size, before, drawn), size)] += 1
    assert uniformity(right, runs, size) > 1e-3
    assert uniformity(wrong, runs, size) < 1e-3


def test_slots_do_not_depend_on_how_a_stream_is_split():
    a, b = np.random.default_rng(2), np.random.default_rng(2)
    whole = reservoir_slots(0, 100, 9, a)
    cut = [reservoir_slots(start, size, 9, b) for start, size in ((0, 7), (7, 53), (60, 40))]
    assert np.array_equal(whole, np.concatenate(cut))


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_reads_are_distinct_and_in_range(count: int):
    below = np.random.default_rng(3).integers(6, 30, 500)
    drawn = distinct(below, count, np.random.default_rng(4))
    assert drawn.shape == (500, count)
    assert drawn.dtype == np.int32
    assert ((drawn >= 0) & (drawn < below[:, None])).all()
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()


def test_a_read_of_all_slots_reads_each_once():
    drawn = distinct(np.full(20, 8), 8, np.random.default_rng(5))
    assert (np.sort(drawn, axis=1) == np.arange(8)).all()


def test_every_set_of_reads_is_equally_likely():
    runs = 20_000
    drawn = np.sort(distinct(np.full(runs, 6), 3, np.random.default_rng(6)), axis=1)
    sets = list(combinations(range(6), 3))
    counts = np.array([(drawn == chosen).all(1).sum() for chosen in sets])
    assert counts.sum() == runs
    expected = runs / len(sets)
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), len(sets) - 1) > 1e-3

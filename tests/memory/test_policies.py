"""Which samples are stored at the end of a task, and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from seqrun.memory.policies import (
    class_balanced_rows,
    herding_order,
    herding_rows,
    interleaved,
    random_rows,
    rank_in_group,
    ring_rows,
)


def test_rank_in_group():
    assert rank_in_group(np.array([3, 1, 3, 3, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]
    assert rank_in_group(np.empty(0, int)).tolist() == []


def test_interleaved_takes_the_first_of_each_class_first():
    y = np.array([0, 0, 0, 1, 2, 2])
    assert interleaved(np.array([2, 5, 1, 0, 3, 4]), y).tolist() == [2, 5, 3, 1, 4, 0]


def test_ring_keeps_the_last_of_each_class():
    """The order is 4 0 2 5 1 3; class 0 is {0, 2, 4}, class 1 is {1, 3, 5}."""
    y = np.array([0, 1, 0, 1, 0, 1])
    rows = ring_rows(y, np.array([4, 0, 2, 5, 1, 3]))
    assert rows.tolist() == [3, 2, 1, 0, 5, 4]
    assert set(rows[:4]) == {3, 1, 2, 0}  # two of each class: those seen last


@pytest.mark.parametrize("size", range(1, 31))
def test_class_balanced_prefixes_are_balanced(size: int):
    y = np.repeat([0, 1, 2], 10)
    rows = class_balanced_rows(y, np.random.default_rng(size))
    assert sorted(rows) == list(range(30))
    counts = np.bincount(y[rows[:size]], minlength=3)
    assert counts.max() - counts.min() <= 1


def test_class_balanced_favours_no_class():
    """With room for one sample of three classes, each class is stored in a third of the runs."""
    y = np.repeat([0, 1, 2], 10)
    runs = 3000
    chosen = [y[class_balanced_rows(y, np.random.default_rng(s))[0]] for s in range(runs)]
    assert np.abs(np.bincount(chosen) / runs - 1 / 3).max() < 4 * np.sqrt(2 / 9 / runs)


def test_class_balanced_fills_up_a_small_class_with_others():
    y = np.array([0] * 10 + [1])
    rows = class_balanced_rows(y, np.random.default_rng(0))
    assert np.bincount(y[rows[:6]]).tolist() == [5, 1]


def test_random_is_a_permutation_of_all_rows():
    assert sorted(random_rows(np.zeros(12), np.random.default_rng(0))) == list(range(12))


def test_herding_order_by_hand():
    """Unit vectors (1, 0), (0, 1), (0.6, 0.8): mean (0.533, 0.6).

    The third is chosen first: its squared distance is 0.044, those of the others are 0.578 and
    0.444. Together with it, the first has mean (0.8, 0.4) at 0.111, and the second (0.3, 0.9) at
    0.144. So the first follows, although it is farthest from the mean. The lengths of the features
    do not matter.
    """
    features = np.array([[3.0, 0.0], [0.0, 0.1], [6.0, 8.0]])
    assert herding_order(features, 3).tolist() == [2, 0, 1]


def brute_force_herding(
    features: np.ndarray, limit: int, dtype: type[np.floating] = np.float64
) -> list[int]:
    """Return the choices of Rebuffi 2017, algorithm 4, implemented literally."""
    phi = [f / np.linalg.norm(f) for f in features.astype(dtype)]
    mu = sum(phi) / len(phi)
    chosen: list[int] = []
    for k in range(1, limit + 1):
        distances = {
            i: np.linalg.norm(mu - (phi[i] + sum(phi[j] for j in chosen)) / k)
            for i in range(len(phi))
            if i not in chosen
        }
        chosen.append(min(distances, key=distances.__getitem__))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_herding_order_is_that_of_the_paper(seed: int):
    features = np.random.default_rng(seed).normal(1, 1, (25, 6)).astype(np.float32)
    order = herding_order(features, 25)
    assert order.tolist() == brute_force_herding(features, 25)
    assert herding_order(features, 9).tolist() == order[:9].tolist()


def test_herding_takes_no_sample_twice_and_accepts_zero_features():
    features = np.zeros((4, 3))
    features[1:] = [1, 2, 3]
    assert sorted(herding_order(features, 10)) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [6, 600])
def test_herding_where_float32_would_choose_differently(size: int):
    """Features that float32 cannot distinguish: all close candidates are compared in float64."""
    features = 1 + 1e-5 * np.random.default_rng(0).random((40, size))
    features[1::2] *= np.where(np.arange(size) % 2, 1, 3)  # far from the others
    order = herding_order(features, 12).tolist()
    assert order == brute_force_herding(features, 12)
    assert order != brute_force_herding(features, 12, np.float32)


def test_herding_rows_follow_the_order_of_each_class():
    rng = np.random.default_rng(9)
    y = np.array([1, 0, 1, 0, 1, 0, 0])
    features = rng.normal(1, 1, (7, 4))
    rows = herding_rows(y, features, 3)
    for c in (0, 1):
        of_class = np.flatnonzero(y == c)
        expected = of_class[brute_force_herding(features[of_class], 3)]
        assert rows[y[rows] == c].tolist() == expected.tolist()
    assert y[rows].tolist() == [0, 1, 0, 1, 0, 1]

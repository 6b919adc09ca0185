"""Facts of the Rotated, Permuted and Split streams, on the embedded digits."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import seqrun.benchmarks
from seqrun.benchmarks import PermutedDigits, RotatedDigits, SplitDigits
from seqrun.benchmarks.digits import DIGITS, load_digits
from seqrun.benchmarks.rotation import rotate
from seqrun.checks import ConfigError
from seqrun.plan import RandomStreams


def prepared(benchmark, seed=0):
    """Return the benchmark, prepared."""
    benchmark.prepare(RandomStreams(seed))
    return benchmark


def test_digits_are_all_there_and_balanced():
    """1797 images, every one in exactly one part; the stated facts are those of the data."""
    from sklearn.datasets import load_digits as original

    raw = load_digits()
    assert raw.x_train.shape == (1440, 8, 8, 1) and raw.x_test.shape == (357, 8, 8, 1)
    assert tuple(np.bincount(raw.y_train)) == DIGITS.train_counts
    assert np.bincount(raw.y_test).tolist() == [35, 37, 34, 37, 34, 33, 36, 35, 39, 37]
    assert np.mean(raw.x_train / 255) == pytest.approx(DIGITS.mean[0], abs=5e-5)
    assert np.std(raw.x_train / 255) == pytest.approx(DIGITS.std[0], abs=5e-5)
    images = original().images
    # Grey level 13 of 16 is 207.19 of 255; the first image's first row is 0 0 5 13 9 1 0 0.
    assert raw.x_train[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    np.testing.assert_array_equal(raw.x_test[0, ..., 0], np.rint(images[40] * 255 / 16))
    assert raw.y_train[:11].tolist() == [*range(10), 0]


def test_changed_digits_are_refused(monkeypatch):
    """The checksum is that of the pixels and the labels."""
    read = np.loadtxt

    def changed(*args, **kwargs):
        table = read(*args, **kwargs)
        table[5, -1] = 0
        return table

    monkeypatch.setattr(np, "loadtxt", changed)
    with pytest.raises(ConfigError, match="digits have md5 .* must be 4d03"):
        load_digits()


@pytest.mark.ci
def test_importing_benchmarks_is_light():
    """NumPy alone: no framework, no scikit-learn, no PIL, no Hydra."""
    code = (
        "import sys, seqrun.benchmarks; heavy = {'torch', 'torchvision', 'jax', 'sklearn', 'PIL',"
        " 'hydra', 'omegaconf', 'scipy'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rotated_tasks_are_the_same_images_turned():
    """Task t by (t - 1) * per_task_rotation, or by its own angle; labels stay."""
    raw = load_digits()
    benchmark = prepared(RotatedDigits(num_tasks=3, per_task_rotation=20))
    for task, angle in ((1, 0), (2, 20), (3, 40)):
        train, test = benchmark.task_data(task, "train"), benchmark.task_data(task, "test")
        np.testing.assert_array_equal(train.x, rotate(raw.x_train, angle))
        np.testing.assert_array_equal(test.x, rotate(raw.x_test, angle))
        np.testing.assert_array_equal(train.y, raw.y_train)
    given = prepared(RotatedDigits(num_tasks=2, angles=[5, -7.5], interpolation="nearest"))
    np.testing.assert_array_equal(given.task_data(2).x, rotate(raw.x_train, -7.5, "nearest"))
    assert benchmark.num_classes == 10 and benchmark.input_shape == (8, 8, 1)
    assert benchmark.class_mask is None


def test_permuted_tasks_move_every_image_alike():
    """Pixel by pixel, image by image, against plain indexing; train and test alike."""
    raw = load_digits()
    benchmark = prepared(PermutedDigits(num_tasks=3))
    np.testing.assert_array_equal(benchmark.task_data(1).x, raw.x_train)
    for task in (2, 3):
        order = benchmark.permutation(task)
        assert sorted(order) == list(range(64)) and order.tolist() != list(range(64))
        for split, x in (("train", raw.x_train), ("test", raw.x_test)):
            data = benchmark.task_data(task, split)
            for n in range(0, len(x), 37):
                expected = [x[n].ravel()[source] for source in order]
                assert data.x[n].ravel().tolist() == expected
    assert benchmark.permutation(2).tolist() != benchmark.permutation(3).tolist()


def test_permutations_depend_on_the_seed_and_the_task_alone():
    """A longer stream begins like a shorter one; the first task is permuted if asked."""
    short, longer = prepared(PermutedDigits(num_tasks=2)), prepared(PermutedDigits(num_tasks=9))
    assert short.permutation(2).tolist() == longer.permutation(2).tolist()
    other = prepared(PermutedDigits(num_tasks=2), seed=1)
    assert short.permutation(2).tolist() != other.permutation(2).tolist()
    every = prepared(PermutedDigits(first_task_identity=False))
    assert every.permutation(1).tolist() != list(range(64))


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("order", [None, [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]])
def test_split_tasks_are_disjoint_and_complete(scenario, order):
    """Each image comes once, in the task of its class, under the scenario's label."""
    raw = load_digits()
    benchmark = prepared(SplitDigits(scenario=scenario, class_order=order))
    order = list(range(10)) if order is None else order
    for split, x, y in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        total = 0
        for task in range(1, 6):
            classes = order[2 * task - 2 : 2 * task]
            data = benchmark.task_data(task, split)
            members = np.isin(y, classes)
            np.testing.assert_array_equal(data.x, x[members])
            place = [order.index(c) for c in y[members]]
            if scenario == "domain":
                place = [p - 2 * (task - 1) for p in place]
            assert data.y.tolist() == place and set(data.t) == {task - 1}
            total += len(data.y)
        assert total == len(y)


def test_split_masks_and_outputs():
    """All classes with the task's own marked; one small shared head in the domain scenario."""
    task = prepared(SplitDigits(num_tasks=2, scenario="task"))
    assert task.num_classes == 10 and task.class_mask.dtype == bool
    assert task.class_mask.tolist() == [[True] * 5 + [False] * 5, [False] * 5 + [True] * 5]
    single = prepared(SplitDigits(num_tasks=10, scenario="class"))
    np.testing.assert_array_equal(single.class_mask, np.eye(10, dtype=bool))
    domain = prepared(SplitDigits(num_tasks=2, scenario="domain"))
    assert domain.num_classes == 5 and domain.class_mask is None


def test_random_class_order_is_drawn_from_its_stream():
    """A permutation that the seed decides."""
    orders = [prepared(SplitDigits(class_order="random"), s).ordered_classes() for s in (0, 0, 1)]
    assert sorted(orders[0]) == list(range(10))
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()


def test_normalize_states_the_mean_and_standard_deviation():
    """Inputs are in [0, 1] unless asked."""
    assert RotatedDigits().transform == (None, None)
    assert RotatedDigits(normalize=True).transform == ((0.3051,), (0.3758,))


@pytest.mark.parametrize("name", ["rotated", "permuted", "split"])
@pytest.mark.parametrize("source", ["digits", "mnist"])
def test_configuration_files_list_every_argument_with_its_default(name, source):
    """A key is a constructor argument, and none is missing."""
    path = Path(__file__).parents[2] / "conf" / "benchmark" / f"{name}_{source}.yaml"
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    kind = getattr(seqrun.benchmarks, keys.pop("_target_").removeprefix("seqrun.benchmarks."))
    assert kind.name == path.stem
    defaults = {k: p.default for k, p in inspect.signature(kind).parameters.items()}
    data_dir = defaults.pop("data_dir")
    if source == "mnist":
        assert data_dir is None and keys.pop("data_dir") == "${data_dir}"
    assert keys == defaults

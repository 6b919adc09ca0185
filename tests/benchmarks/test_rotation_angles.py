"""Angles drawn for each task, as three published protocols draw them, against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from seqrun.benchmarks import RotatedDigits, RotatedMNIST
from seqrun.benchmarks.digits import load_digits
from seqrun.benchmarks.mnist import load_mnist
from seqrun.checks import ConfigError
from seqrun.plan import RandomStreams

PROTOCOLS = {  # t from 1; bounds of the angle of task t
    "GEM": ({"per_task_rotation": 9, "random_rotation": [0, 9]}, lambda t: (9 * (t - 1), 9 * t)),
    "Stable SGD": (
        {"per_task_rotation": 10, "random_rotation": [-10, 0]},
        lambda t: (10 * (t - 1) - 10, 10 * (t - 1)),
    ),
    "DER": ({"per_task_rotation": 0, "random_rotation": [0, 180]}, lambda t: (0, 180)),
}


def prepared(kind=RotatedDigits, seed=0, streams=None, **options):
    """Return a stream, prepared."""
    benchmark = kind(**options)
    benchmark.prepare(RandomStreams(seed, streams or {}))
    return benchmark


def angles(benchmark):
    """Return the angle of every task."""
    return [benchmark.angle(t) for t in range(1, benchmark.num_tasks + 1)]


def one_by_one(images, side, angle, mode):
    """Pad and rotate each image by torchvision."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import pad, rotate

    border = (side - images.shape[1]) // 2
    pictures = [pad(Image.fromarray(image[..., 0]), border) for image in images]
    rotated = [np.asarray(rotate(p, angle, InterpolationMode(mode))) for p in pictures]
    return np.stack(rotated)[..., None]


@pytest.mark.ci
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_angles_are_uniform_in_the_range_of_their_task(protocol):
    """Twenty tasks of 60 seeds fill each range evenly."""
    options, bounds = PROTOCOLS[protocol]
    drawn = np.array([angles(prepared(num_tasks=20, seed=s, **options)) for s in range(60)])
    low, high = np.array([bounds(t) for t in range(1, 21)], float).T
    place = (drawn - low) / (high - low)
    assert place.min() >= 0 and place.max() <= 1
    assert np.bincount((place * 4).astype(int).ravel(), minlength=4) == pytest.approx(300, abs=60)
    # Draws of different tasks and of different seeds have nothing to do with each other.
    assert abs(np.corrcoef(place.T)[np.triu_indices(20, 1)]).mean() < 0.2
    assert len(np.unique(place.round(9))) == place.size


def test_angles_come_from_the_stream_of_tasks_alone():
    """A longer stream begins like a shorter one."""
    options = PROTOCOLS["DER"][0]
    short, longer = prepared(**options), prepared(num_tasks=9, **options)
    assert angles(short) == angles(longer)[:5] != angles(prepared(seed=1, **options))
    assert angles(short) == angles(prepared(streams={"data": 5, "memory": 6}, **options))
    assert angles(prepared(seed=1, **options)) == angles(prepared(streams={"tasks": 1}, **options))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("pad_to", [None, 12])
def test_train_and_test_images_turn_alike_as_torchvision_turns_them(interpolation, pad_to):
    """Padded first, then turned by the task's angle; a subset is turned like the whole."""
    raw = load_digits()
    options = {"interpolation": interpolation, "pad_to": pad_to, **PROTOCOLS["GEM"][0]}
    benchmark = prepared(num_tasks=3, samples_per_task=100, **options)
    side = pad_to or 8
    assert benchmark.input_shape == (side, side, 1)
    for task in (1, 3):
        rows = benchmark._rows(task, "train")
        for split, x in (("train", raw.x_train[rows]), ("test", raw.x_test)):
            data = benchmark.task_data(task, split)
            turned = one_by_one(x, side, benchmark.angle(task), interpolation)
            np.testing.assert_array_equal(data.x, turned)


def test_the_gem_protocol_on_real_mnist(mnist_dir):
    """Twenty tasks of 1000 images each, nearest, against torchvision image by image."""
    raw = load_mnist(mnist_dir)
    benchmark = prepared(
        RotatedMNIST,
        num_tasks=20,
        samples_per_task=1000,
        interpolation="nearest",
        data_dir=mnist_dir,
        **PROTOCOLS["GEM"][0],
    )
    chosen = []
    for task in (1, 7, 20):
        rows = benchmark._rows(task, "train")
        chosen.append(set(rows))
        data = benchmark.task_data(task)
        assert data.x.shape == (1000, 28, 28, 1) and benchmark.task_size(task, "test") == 10000
        np.testing.assert_array_equal(data.y, raw.y_train[rows])
        turned = one_by_one(raw.x_train[rows[:300]], 28, benchmark.angle(task), "nearest")
        np.testing.assert_array_equal(data.x[:300], turned)
    assert max(len(a & b) for a, b in zip(chosen, chosen[1:], strict=False)) < 100  # 17 expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"random_rotation": 9}, "random_rotation=9: must be null or a list of 2 numbers, low <"),
        ({"random_rotation": [0]}, r"random_rotation=\[0\]: must be null or a list of 2 numbers"),
        ({"random_rotation": [9, 9]}, r"random_rotation=\[9, 9\]: .* low < high"),
        ({"random_rotation": [0, "x"]}, "random_rotation='x': must be a finite number"),
        ({"random_rotation": [0, float("inf")]}, "random_rotation=inf: must be a finite number"),
        ({"random_rotation": [0, 9], "angles": [1, 2, 3, 4, 5]}, "must be null beside .*angles"),
    ],
)
def test_bad_ranges_are_refused_at_construction(options, message):
    """One message with key, value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        RotatedDigits(**options)

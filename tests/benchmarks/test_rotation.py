"""Rotations equal torchvision's on PIL images, image by image, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from seqrun.benchmarks.digits import load_digits
from seqrun.benchmarks.mnist import load_mnist
from seqrun.benchmarks.rotation import rotate

ANGLES = (0, 90, 180, 270, 360, -90, 450, 9, 36, 45, 72, 108, 144, 171.5, 200.25, 301, -13.7, 1e-14)
ANGLES += tuple(float(a) for a in np.random.default_rng(0).uniform(-720, 720, 12))


def one_by_one(images, angle, interpolation):
    """Rotate each image by torchvision."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import rotate as oracle

    mode = InterpolationMode(interpolation)
    pictures = [Image.fromarray(i[..., 0] if i.shape[-1] == 1 else i) for i in images]
    turned = [np.asarray(oracle(p, angle, interpolation=mode)) for p in pictures]
    return np.stack(turned).reshape(images.shape)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    "shape", [(8, 8, 1), (28, 28, 1), (7, 12, 1), (13, 5, 3), (32, 32, 3), (1, 1, 1), (64, 3, 1)]
)
def test_random_images_equal_torchvision(shape, interpolation):
    """Random pixels differ everywhere, so that any wrong neighbour or weight shows."""
    images = np.random.default_rng(1).integers(0, 256, (9, *shape), dtype=np.uint8)
    for angle in ANGLES:
        ours = rotate(images, angle, interpolation)
        np.testing.assert_array_equal(ours, one_by_one(images, angle, interpolation), str(angle))


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_digits_equal_torchvision(interpolation):
    """More images than a block holds, and a last block that is not full."""
    images = load_digits().x_train[:700]
    for angle in (36, 72.5, 333):
        ours = rotate(images, angle, interpolation)
        np.testing.assert_array_equal(ours, one_by_one(images, angle, interpolation))


@pytest.mark.ci
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_mnist_equals_torchvision(mnist_dir, interpolation):
    """The images that published numbers used."""
    images = load_mnist(mnist_dir).x_test[:1500]
    for angle in (9, 36, 72, 108, 144):
        ours = rotate(images, angle, interpolation)
        np.testing.assert_array_equal(ours, one_by_one(images, angle, interpolation))


def test_counter_clockwise_by_hand():
    """A quarter turn moves the top right corner to the top left; the input is not changed."""
    image = np.array([[1, 2], [3, 4]], np.uint8).reshape(1, 2, 2, 1)
    assert rotate(image, 90)[0, ..., 0].tolist() == [[2, 4], [1, 3]]
    assert rotate(image, 180)[0, ..., 0].tolist() == [[4, 3], [2, 1]]
    same = rotate(image, 0)
    assert same.tolist() == image.tolist() and not np.shares_memory(same, image)


def test_bilinear_by_hand():
    """At 45 degrees the centre of 3 x 3 stays and a corner lies outside."""
    image = np.zeros((1, 3, 3, 1), np.uint8)
    image[0, 1, 1] = 200
    turned = rotate(image, 45)[0, ..., 0]
    # One pixel up in the output is (sqrt(.5), sqrt(.5)) off the centre in the input, so that the
    # centre weighs (1 - sqrt(.5))^2 = .0858: 17.2, truncated.
    assert turned.tolist() == [[0, 17, 0], [17, 200, 17], [0, 17, 0]]


def test_no_images_and_one():
    """A block may be empty or hold one image."""
    assert rotate(np.zeros((0, 4, 4, 1), np.uint8), 30).shape == (0, 4, 4, 1)
    image = np.random.default_rng(2).integers(0, 256, (1, 6, 6, 1), dtype=np.uint8)
    np.testing.assert_array_equal(rotate(image, 30), one_by_one(image, 30, "bilinear"))


@pytest.mark.parametrize(
    "images, interpolation",
    [
        (np.zeros((2, 4, 4), np.uint8), "bilinear"),
        (np.zeros((2, 4, 4, 1), np.float32), "bilinear"),
        (np.zeros((2, 4, 4, 1), np.uint8), "bicubic"),
    ],
)
def test_what_cannot_be_rotated_is_refused(images, interpolation):
    """No silent conversion."""
    with pytest.raises(ValueError, match="must be"):
        rotate(images, 10, interpolation)

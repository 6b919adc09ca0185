"""Padding, normalisation, and test data that must not be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from experiments import build, every_backend

from seqrun.benchmarks import (
    BaseBenchmark,
    Dataset,
    LazyTasks,
    PermutedDigits,
    RotatedDigits,
    SplitDigits,
    SplitMNIST,
)
from seqrun.benchmarks.digits import DIGITS, load_digits
from seqrun.benchmarks.mnist import load_mnist
from seqrun.benchmarks.normalization import measured_transform
from seqrun.benchmarks.source import RawImages
from seqrun.benchmarks.tasks import pad
from seqrun.checks import ConfigError

KINDS = (RotatedDigits, PermutedDigits, SplitDigits)


def test_padding_by_hand():
    """Images are centred; an odd row or column of padding goes to the bottom or right."""
    image = np.array([[1, 2], [3, 4]], np.uint8).reshape(1, 2, 2, 1)
    assert pad(image, 4)[0, ..., 0].tolist() == [[0] * 4, [0, 1, 2, 0], [0, 3, 4, 0], [0] * 4]
    assert pad(image, 3)[0, ..., 0].tolist() == [[1, 2, 0], [3, 4, 0], [0] * 3]
    assert pad(image, 2).tolist() == image.tolist() and pad(image, 5).dtype == np.uint8
    wide = np.arange(1, 7, dtype=np.uint8).reshape(1, 1, 2, 3)
    assert pad(wide, 2)[0].tolist() == [[[1, 2, 3], [4, 5, 6]], [[0] * 3] * 2]


@pytest.mark.parametrize("kind", KINDS)
def test_every_stream_can_be_padded(kind, streams):
    """Train, validation, test and memories have the new size."""
    benchmark = kind(pad_to=11, validation_fraction=0.1, samples_per_task=30)
    assert benchmark.input_shape == (11, 11, 1)
    benchmark.prepare(streams)
    for split in ("train", "validation", "test"):
        assert benchmark.task_data(2, split).x.shape[1:] == (11, 11, 1)
    benchmark.set_memory(1, np.array([3]))
    assert benchmark.task_with_memories(2).x.shape == (31, 11, 11, 1)


def test_padding_is_permuted_with_the_rest(streams):
    """Images are padded, then permuted, so black pixels can be anywhere."""
    raw = load_digits()
    benchmark = PermutedDigits(pad_to=10)
    benchmark.prepare(streams)
    order = benchmark.permutation(2)
    assert sorted(order) == list(range(100))
    for n in (0, 100, 356):
        framed = np.zeros((10, 10), np.uint8)
        framed[1:9, 1:9] = raw.x_test[n, ..., 0]
        expected = [framed.ravel()[source] for source in order]
        assert benchmark.task_data(2, "test").x[n].ravel().tolist() == expected
        np.testing.assert_array_equal(benchmark.task_data(1, "test").x[n, ..., 0], framed)


@pytest.mark.ci
def test_mnist_as_hsu_et_al_have_it(mnist_dir, streams):
    """32 x 32, two black pixels on each side; the mean and std are those of padded images."""
    raw = load_mnist(mnist_dir)
    benchmark = SplitMNIST(
        pad_to=32, normalize=True, mean=[0.1], std=[0.2752], data_dir=mnist_dir, scenario="class"
    )
    assert benchmark.transform == ((0.1,), (0.2752,)) and benchmark.input_shape == (32, 32, 1)
    benchmark.prepare(streams)
    data = benchmark.task_data(1, "test")
    np.testing.assert_array_equal(data.x[:, 2:30, 2:30], raw.x_test[raw.y_test < 2])
    assert data.x.sum(dtype=int) == data.x[:, 2:30, 2:30].sum(dtype=int)
    known = SplitMNIST(normalize=True).transform  # rounded to four digits
    measured = measured_transform(pad(raw.x_train, 32))
    assert measured.mean == pytest.approx((0.1,), abs=1e-4)
    assert measured.std == pytest.approx((0.2752,), abs=1e-4)
    assert measured_transform(raw.x_train).mean == pytest.approx(known.mean, abs=5e-5)


@pytest.mark.ci
def test_measured_mean_and_deviation_equal_numpys(tmp_path, monkeypatch):
    """Per channel and in blocks, for a memory map and for an array."""
    import seqrun.benchmarks.normalization as module

    images = np.random.default_rng(0).integers(0, 256, (37, 5, 4, 3)).astype(np.uint8)
    images[..., 1] //= 3
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    whole = measured_transform(images)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 300)  # 5 images, and 2 at the end
    for mean, std in (whole, measured_transform(mapped)):
        np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)
    many = np.full((70000, 16, 16, 1), 255, np.uint8)  # sums beyond 32 bits
    many[0] = 0
    mean, std = measured_transform(many)
    assert mean[0] == pytest.approx(1 - 1 / 70000, rel=1e-12)
    assert std[0] == pytest.approx(np.sqrt(1 / 70000 - 1 / 70000**2), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_states_no_mean_is_measured(kind, streams):
    """Mean and std are those of the stored images, before padding."""

    class Unknown(kind):
        source = replace(DIGITS, mean=None, std=None)

    benchmark = Unknown(normalize=True, pad_to=20, validation_fraction=0.5)
    assert benchmark.transform == (None, None)
    benchmark.prepare(streams)
    pixels = load_digits().x_train / 255
    assert benchmark.transform.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert benchmark.transform.std == pytest.approx((pixels.std(),), rel=1e-12)
    assert Unknown(normalize=True, mean=[0.5], std=[2]).transform == ((0.5,), (2,))
    plain = Unknown()
    plain.prepare(streams)
    assert plain.transform == (None, None)


def test_equal_pixels_cannot_be_normalised():
    """Nothing can be divided by a standard deviation of zero."""
    images = np.zeros((4, 2, 2, 2), np.uint8)
    images[0, 0, 0, 0] = 1
    with pytest.raises(ConfigError, match="normalize=True: .* pixels of channel 1 are equal"):
        measured_transform(images)


@pytest.mark.ci
@every_backend
def test_networks_are_given_padded_normalised_inputs(backend):
    """(x / 255 - mean) / std, also for the padding, whose pixels are black."""
    stream = {"pad_to": 10, "normalize": True, "mean": [0.25], "std": [0.5], "num_tasks": 1}
    algorithm = build("naive", backend, benchmark="rotated_digits", stream=stream)
    algorithm.fit()
    x = algorithm.benchmark.task_data(1, "test").x[:3]
    if backend == "torch":
        import torch

        inputs = algorithm.engine.inputs(torch.from_numpy(x)).numpy()
    else:
        inputs = np.array(algorithm.engine.inputs(x))
    assert inputs.dtype == np.float32 and inputs.shape == (3, 10, 10, 1)
    assert inputs[:, 0].ravel().tolist() == [-0.5] * 30
    shown = load_digits().x_test[:3] / 255
    np.testing.assert_allclose(inputs[:, 1:9, 1:9], (shown - 0.25) / 0.5, atol=1e-6)


class Poison:
    """Images whose pixels must not be read."""

    def __init__(self, images):
        """Store what is known without reading pixels."""
        self.shape, self.dtype = images.shape, images.dtype

    def __len__(self):
        """Return the number of images."""
        return self.shape[0]

    def __getitem__(self, rows):
        """Fail."""
        raise AssertionError("the test images were read")

    def __array__(self, *_, **__):
        """Fail."""
        raise AssertionError("the test images were read")


@pytest.mark.parametrize("kind", KINDS)
def test_no_test_image_is_read_when_there_is_a_validation_part(kind, streams):
    """A run with unreadable test images equals one with readable ones; reading them fails."""

    def poisoned(data_dir):
        raw = load_digits(data_dir)
        labels = raw.y_test[::-1].copy()
        return RawImages(raw.x_train, raw.y_train, Poison(raw.x_test), labels)

    class Sick(kind):
        source = replace(DIGITS, load=poisoned, mean=None, std=None)

    class Healthy(kind):
        source = replace(DIGITS, mean=None, std=None)

    def run(make):
        options = {"num_tasks": 2, "validation_fraction": 0.25, "normalize": True}
        trained = build("naive", "torch", benchmark="split_digits")
        algorithm = type(trained)(
            benchmark=make(**options),
            backbone=trained.backbone,
            optimizer=trained.optimizer,
            device="cpu",
        )
        algorithm.fit()
        return algorithm

    sick, healthy = run(Sick), run(Healthy)
    assert sick.benchmark.evaluation_split == "validation"
    np.testing.assert_array_equal(sick.accuracy_matrix, healthy.accuracy_matrix)
    assert sick.accuracy_matrix[-1, -1] > 0
    with pytest.raises(AssertionError, match="were read"):
        sick.benchmark.task_data(1, "test")


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_a_new_benchmark_is_described_without_its_test_data(scenario, streams):
    """Shape and classes come from the training data if results are measured on a part of them."""

    class Lazy(BaseBenchmark):
        def prepare_datasets(self):
            def train(task, rows):
                x, y = np.zeros((4, 2, 3, 1), np.uint8), np.arange(4)
                return Dataset.of_task(x[rows], y[rows], task)

            def test(task, rows):
                raise AssertionError("the test images were read")

            return LazyTasks([4], train), LazyTasks([9], test)

    benchmark = Lazy(num_tasks=1, validation_fraction=0.25, scenario=scenario)
    benchmark.prepare(streams)
    assert (benchmark.num_classes, benchmark.input_shape) == (4, (2, 3, 1))
    with pytest.raises(AssertionError, match="were read"):
        Lazy(num_tasks=1, scenario=scenario).prepare(streams)


class Own(BaseBenchmark):
    """A benchmark without a source: two channels."""

    def prepare_datasets(self):
        """Return one task."""
        data = Dataset.of_task(np.zeros((2, 3, 3, 2), np.uint8), np.arange(2), 1)
        return {1: data}, {1: data}


def test_a_benchmark_without_a_source_can_be_given_a_mean(streams):
    """One number per channel; the data determine the number of channels."""
    benchmark = Own(num_tasks=1, normalize=True, mean=[0.1, 0.2], std=[1, 2])
    benchmark.prepare(streams)
    assert benchmark.transform == ((0.1, 0.2), (1, 2))
    with pytest.raises(ConfigError, match=r"mean=\[0.1\]: must have one number per channel, 2"):
        Own(num_tasks=1, normalize=True, mean=[0.1], std=[1]).prepare(streams)
    for options, message in (
        ({"pad_to": 4}, "pad_to=4: must be null, since this benchmark makes its own images"),
        ({"normalize": True}, "normalize=True: must be false or come with benchmark.mean"),
    ):
        with pytest.raises(ConfigError, match=message):
            Own(num_tasks=1, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"pad_to": 7}, "benchmark.pad_to=7: must be an integer >= 8"),
        ({"pad_to": "32"}, "benchmark.pad_to='32': must be an integer >= 8"),
        ({"mean": [0.1], "std": [1]}, r"mean=\[0.1\]: must be null unless .*normalize=true"),
        ({"normalize": True, "mean": [0.1]}, "benchmark.std=None: must be given with"),
        ({"normalize": True, "std": [0.1]}, "benchmark.mean=None: must be given with"),
        ({"normalize": True, "mean": 0.1, "std": [1]}, "mean=0.1: must be null or a list"),
        ({"normalize": True, "mean": ["a"], "std": [1]}, "mean='a': must be a finite number"),
        ({"normalize": True, "mean": [0.1], "std": [0]}, "std=0: must be a number > 0"),
        ({"normalize": True, "mean": [0, 0], "std": [1, 1]}, r"mean=\[0, 0\]: must have one .* 1"),
    ],
)
def test_bad_options_are_refused_at_construction(kind, options, message):
    """One message with key, value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        kind(**options)

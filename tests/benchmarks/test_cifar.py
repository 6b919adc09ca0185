"""CIFAR-10 and CIFAR-100: the official constants, and archives of the same layout."""

from __future__ import annotations

import dataclasses
import tarfile

import numpy as np
import pytest
from benchmarks.generators import cifar_batches, cifar_set

from seqrun.benchmarks import SplitCIFAR10, SplitCIFAR100
from seqrun.benchmarks.cifar import CIFAR10, CIFAR10_FILES, CIFAR100, CIFAR100_FILES, cifar_source
from seqrun.benchmarks.split import Split
from seqrun.checks import ConfigError

SIZES = {"data_batch_1": 20, "data_batch_2": 20, "test_batch": 10}


def source_of(files, classes=10, per_class=4):
    """Return the source of generated files."""
    return cifar_source(files, (per_class,) * classes, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def batches():
    """Return the batches of a tiny CIFAR-10."""
    return cifar_batches(SIZES, 10, "labels")


def benchmark(files, root, **options):
    """Return Split over generated files."""

    class Tiny(Split):
        source = source_of(files)

    return Tiny(data_dir=root, **options)


@pytest.mark.parametrize("kind", ["CIFAR10", "CIFAR100"])
def test_names_and_checksums_are_those_of_torchvision(kind):
    """Archive, folder and every batch."""
    official = getattr(pytest.importorskip("torchvision").datasets, kind)
    files = {"CIFAR10": CIFAR10_FILES, "CIFAR100": CIFAR100_FILES}[kind]
    assert (files.archive, files.md5, files.folder) == (
        official.filename,
        official.tgz_md5,
        official.base_folder,
    )
    assert files.url + files.archive == official.url
    assert [list(pair) for pair in files.train] == official.train_list
    assert [list(pair) for pair in files.test] == official.test_list


def test_split_facts():
    """Sizes and checksums of the real sets, known before they are there."""
    assert CIFAR10.checksum == "c58f30108f718f92721af3b95e74349a"
    assert CIFAR100.checksum == "eb9058c3a382ffc7106e4002c42a8d85"
    assert (CIFAR10.num_classes, sum(CIFAR10.train_counts)) == (10, 50000)
    assert (CIFAR100.num_classes, sum(CIFAR100.train_counts)) == (100, 50000)
    assert SplitCIFAR10().num_tasks == 5 and SplitCIFAR100().num_tasks == 20
    assert SplitCIFAR10().input_shape == SplitCIFAR100().input_shape == (32, 32, 3)
    with pytest.raises(ConfigError, match="num_tasks=7: must divide the 10 classes"):
        SplitCIFAR10(num_tasks=7)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pixels_and_labels(tmp_path, batches, streams, protocol):
    """Rows of 3 x 1024 become (32, 32, 3); batches in order; tasks are disjoint and complete."""
    files = cifar_set(tmp_path, batches, protocol=protocol)
    raw = source_of(files).load(tmp_path)
    assert raw.x_train.shape == (40, 32, 32, 3) and raw.x_test.shape == (10, 32, 32, 3)
    assert raw.x_train.dtype == np.uint8 and raw.y_train.dtype == np.int32
    row = batches["data_batch_2"]["data"][3]
    for channel, y, x in [(0, 0, 1), (1, 5, 31), (2, 31, 0)]:
        assert raw.x_train[23, y, x, channel] == row[channel * 1024 + y * 32 + x]
    assert raw.y_train.tolist() == [*range(10)] * 4
    stream = benchmark(files, tmp_path)
    stream.prepare(streams)
    assert [stream.task_size(t) for t in range(1, 6)] == [8] * 5
    assert [stream.task_size(t, "test") for t in range(1, 6)] == [2] * 5
    for t in range(1, 6):
        chosen = np.isin(raw.y_train, [2 * t - 2, 2 * t - 1])
        np.testing.assert_array_equal(stream.task_data(t).x, raw.x_train[chosen])
        np.testing.assert_array_equal(stream.task_data(t).y, raw.y_train[chosen])


def test_fine_labels(tmp_path):
    """CIFAR-100's batches hold coarse labels too, which are not taken."""
    batches = cifar_batches({"train": 40, "test": 20}, 20, "fine_labels")
    for batch in batches.values():
        batch["coarse_labels"] = [0] * len(batch["fine_labels"])
    files = cifar_set(tmp_path, batches, "fine_labels")
    raw = source_of(files, 20, 2).load(tmp_path)
    assert raw.y_test.tolist() == [*range(20)]


def test_the_published_files_have_fine_labels(tmp_path):
    """What CIFAR-100's source reads, from a set of its names and layout with both kinds."""
    batches = cifar_batches({"train": 200, "test": 100}, 100, "fine_labels")
    for batch in batches.values():
        batch["coarse_labels"] = [label // 5 for label in batch["fine_labels"]]
    made = cifar_set(
        tmp_path,
        batches,
        archive=CIFAR100_FILES.archive,
        folder=CIFAR100_FILES.folder,
    )
    named = {"train": made.train, "test": made.test, "md5": made.md5}
    raw = source_of(dataclasses.replace(CIFAR100_FILES, **named), 100, 2).load(tmp_path)
    assert raw.y_train.tolist() == [*range(100)] * 2 and raw.y_test.tolist() == [*range(100)]


def test_known_means_and_deviations():
    """Of the training pixels, as the literature has them."""
    ten, hundred = (kind(normalize=True).transform for kind in (SplitCIFAR10, SplitCIFAR100))
    assert ten.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert ten.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
    assert hundred.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=1e-4)
    assert hundred.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=1e-4)


def test_unpacked_folder_is_found(tmp_path, batches):
    """Without the archive; its files are checked too."""
    files = cifar_set(tmp_path / "a", batches)
    with tarfile.open(tmp_path / "a" / files.archive) as tar:
        tar.extractall(tmp_path / "b", filter="data")
    ours = source_of(files).load(tmp_path / "b")
    for one, other in zip(ours, source_of(files).load(tmp_path / "a"), strict=True):
        np.testing.assert_array_equal(one, other)
    damaged = tmp_path / "c" / files.folder
    damaged.mkdir(parents=True)
    for name in SIZES:
        content = (tmp_path / "b" / files.folder / name).read_bytes()
        (damaged / name).write_bytes(content[: -(name == "data_batch_2") or None])
    with pytest.raises(ConfigError, match="data_batch_2 is truncated or another file"):
        benchmark(files, tmp_path / "c").check_data()
    (damaged / "data_batch_2").unlink()
    with pytest.raises(ConfigError, match=f"data_batch_2 is missing: delete {damaged} to have"):
        benchmark(files, tmp_path / "c").check_data()
    assert not (tmp_path / "c" / ".seqrun").exists()


def test_an_archive_goes_before_a_folder_that_is_half_unpacked(tmp_path, batches):
    """As `tar` leaves it when it is stopped."""
    files = cifar_set(tmp_path, batches)
    with tarfile.open(tmp_path / files.archive) as tar:
        tar.extract(f"{files.folder}/data_batch_1", tmp_path, filter="data")
    assert source_of(files).load(tmp_path).y_train.tolist() == [*range(10)] * 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "one byte"])
def test_a_damaged_archive_is_named(tmp_path, batches, damage):
    """It is refused, stays as it is, and nothing is made."""
    files = cifar_set(tmp_path, batches)
    path = tmp_path / files.archive
    content = bytearray(path.read_bytes())
    if damage == "one byte":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "one byte" else content[: len(content) // 2])
    if damage == "empty":
        path.write_bytes(b"")
    left = path.read_bytes()
    with pytest.raises(ConfigError, match=f"^data_dir=.*{files.archive} is truncated or another"):
        benchmark(files, tmp_path).check_data()
    assert path.read_bytes() == left
    assert [p.name for p in tmp_path.iterdir()] == [files.archive]


@pytest.mark.parametrize("unpacked", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path, batches, unpacked):
    """Other bytes than the published ones are refused before they are unpickled."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    published = cifar_set(tmp_path / "published", batches)
    batches["data_batch_2"]["data"] = Evil()
    other = cifar_set(tmp_path, batches)
    if unpacked:
        with tarfile.open(tmp_path / other.archive) as tar:
            tar.extractall(tmp_path, filter="data")
        (tmp_path / other.archive).unlink()
    files = dataclasses.replace(published, md5=other.md5)  # as if the archive alone were the same
    named = "data_batch_2" if unpacked else other.archive
    with pytest.raises(ConfigError, match=f"{named} is truncated or another file"):
        benchmark(files, tmp_path).check_data()
    assert not (tmp_path / "made").exists() and not (tmp_path / ".seqrun").exists()


def test_a_missing_batch(tmp_path, batches):
    """The archive's own checksum may be right."""
    files = cifar_set(tmp_path, batches)
    more = dataclasses.replace(files, train=(*files.train, ("data_batch_3", "x")))
    with pytest.raises(ConfigError, match="cannot read cifar-tiny-py/data_batch_3"):
        source_of(more).check(tmp_path)
    assert not (tmp_path / ".seqrun").exists()


def test_offline_says_what_to_put_where(tmp_path, batches):
    """One line; nothing is made."""
    files = cifar_set(tmp_path / "elsewhere", batches)
    root = tmp_path / "nowhere"
    with pytest.raises(ConfigError) as caught:
        benchmark(files, root).check_data()
    message = str(caught.value)
    assert message.startswith(f"data_dir={root}: CIFAR is missing") and "\n" not in message
    assert files.archive in message and files.md5 in message and str(root) in message
    assert not root.exists()

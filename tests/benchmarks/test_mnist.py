"""Real MNIST: its numbers, and files that are missing, truncated or wrong."""

from __future__ import annotations

import gzip
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from mmap import mmap
from threading import Thread
from unittest.mock import Mock

import numpy as np
import pytest

from seqrun.benchmarks import PermutedMNIST, RotatedMNIST, SplitMNIST, mnist
from seqrun.benchmarks.mnist import MNIST, check_mnist, load_mnist
from seqrun.benchmarks.rotation import rotate
from seqrun.checks import ConfigError

NAMES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]


class QuietHandler(SimpleHTTPRequestHandler):
    """Serve files, reporting nothing."""

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def offline(monkeypatch):
    """Let every download end at a closed port of this machine."""
    monkeypatch.setattr("seqrun.benchmarks.mnist._URL", "http://127.0.0.1:9/")


@pytest.fixture
def archives(mnist_dir, tmp_path):
    """Return a folder of its own with the four archives."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in NAMES:
        source = mnist_dir / "MNIST" / "raw" / f"{name}.gz"
        if not source.is_file():
            pytest.skip(f"needs the archive {source}")
        shutil.copy(source, raw)
    return tmp_path / "data"


def test_address_and_checksums_are_those_of_torchvision():
    """Of every archive."""
    official = pytest.importorskip("torchvision").datasets.MNIST
    assert mnist._URL in official.mirrors
    ours = {f"{file.name}.gz": file.archive_md5 for file in mnist._FILES}
    assert ours == dict(official.resources)


@pytest.mark.ci
def test_the_real_numbers(mnist_dir):
    """Sizes, class counts, first labels, a known pixel row and the published mean."""
    raw = load_mnist(mnist_dir)
    assert raw.x_train.shape == (60000, 28, 28, 1) and raw.x_test.shape == (10000, 28, 28, 1)
    assert raw.x_train.dtype == np.uint8 and raw.y_train.dtype == np.int32
    assert raw.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert raw.y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert tuple(np.bincount(raw.y_train)) == MNIST.train_counts
    assert np.bincount(raw.y_test).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert raw.x_train[0, 5, 12:18, 0].tolist() == [3, 18, 18, 18, 126, 136]
    assert raw.x_train.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert raw.x_train.std() / 255 == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.ci
def test_streams_over_mnist(mnist_dir, streams):
    """Each family serves the real data."""
    raw = load_mnist(mnist_dir)
    rotated = RotatedMNIST(data_dir=mnist_dir, samples_per_task=500)
    rotated.prepare(streams)
    np.testing.assert_array_equal(rotated.task_data(2, "test").x, rotate(raw.x_test, 36))
    assert rotated.task_data(2).x.shape == (500, 28, 28, 1)
    permuted = PermutedMNIST(data_dir=mnist_dir)
    permuted.prepare(streams)
    order = permuted.permutation(2)
    data = permuted.task_data(2, "test")
    for n in (0, 4321, 9999):
        assert data.x[n].ravel().tolist() == raw.x_test[n].ravel()[order].tolist()
    split = SplitMNIST(data_dir=mnist_dir)
    split.prepare(streams)
    assert [split.task_size(t) for t in range(1, 6)] == [12665, 12089, 11263, 12183, 11800]
    assert split.data_checksum() == permuted.data_checksum() == MNIST.checksum


def test_known_mean_and_deviation():
    """As in the frameworks' own examples; no file is needed."""
    transform = SplitMNIST(normalize=True).transform
    assert transform.mean == pytest.approx((0.1307,), abs=1e-4)
    assert transform.std == pytest.approx((0.3081,), abs=1e-4)


@pytest.mark.ci
@pytest.mark.parametrize("writable", [True, False])
def test_archives_are_unpacked_and_mapped(archives, writable, monkeypatch):
    """Once, atomically, and not by a check; where that cannot be written the archives are read."""
    check_mnist(archives)
    raw = archives / "MNIST" / "raw"
    assert sorted(p.name for p in raw.iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    if not writable:
        monkeypatch.setattr("seqrun.benchmarks.mnist.write_atomically", Mock(side_effect=OSError))
    first, again = load_mnist(archives), load_mnist(archives)
    unpacked = [name for name in NAMES if (raw / name).is_file()]
    assert unpacked == (NAMES if writable else [])
    assert (mapping_of(again.x_train) is not None) == writable
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)


def mapping_of(array):
    """Return the file's mapping that an array is a view of, or None."""
    while array is not None and not isinstance(array, mmap):
        array = getattr(array, "base", None)
    return array


@pytest.mark.ci
def test_unpacked_files_are_read_and_preferred(archives):
    """The same arrays from either form; an unpacked file is checked too."""
    raw = archives / "MNIST" / "raw"
    from_archives = load_mnist(archives)
    for name in NAMES:
        (raw / name).write_bytes(gzip.decompress((raw / f"{name}.gz").read_bytes()))
        (raw / f"{name}.gz").write_bytes(b"not read")
    for ours, theirs in zip(load_mnist(archives), from_archives, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    changed = bytearray((raw / NAMES[3]).read_bytes())
    changed[-1] ^= 1
    (raw / NAMES[3]).write_bytes(changed)
    with pytest.raises(ConfigError, match=f"{NAMES[3]} is truncated or another file"):
        check_mnist(archives)


@pytest.mark.parametrize("damage", ["truncated", "empty", "swapped", "one byte"])
def test_a_damaged_archive_is_named(archives, damage):
    """It is refused before and while loading, and is left as it is."""
    path = archives / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-1000]
    elif damage == "empty":
        content = b""
    elif damage == "swapped":
        content = (path.parent / "train-images-idx3-ubyte.gz").read_bytes()
    else:
        content[5000] ^= 1
    path.write_bytes(content)
    for benchmark in (RotatedMNIST(data_dir=archives), SplitMNIST(data_dir=str(archives))):
        with pytest.raises(ConfigError, match=f"^data_dir=.*{path.name} is truncated or another"):
            benchmark.check_data()
    with pytest.raises(ConfigError, match="truncated"):
        load_mnist(archives)
    assert path.read_bytes() == bytes(content)


def test_missing_data_offline_say_what_to_put_where(offline, tmp_path):
    """One message; nothing is left behind."""
    root = tmp_path / "nowhere"
    with pytest.raises(ConfigError) as caught:
        RotatedMNIST(data_dir=root).check_data()
    message = str(caught.value)
    assert message.startswith(f"data_dir={root}: MNIST is missing") and "\n" not in message
    assert all(f"{name}.gz" in message for name in NAMES)
    assert str(root / "MNIST" / "raw") in message
    assert list(tmp_path.iterdir()) == []


def test_one_missing_file_is_named_alone(offline, archives):
    """Those that are there are not asked for again, nor touched."""
    raw = archives / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    before = sorted(archives.rglob("*"))
    with pytest.raises(ConfigError, match="put t10k-labels-idx1-ubyte.gz into"):
        PermutedMNIST(data_dir=archives).check_data()
    assert sorted(archives.rglob("*")) == before


def test_a_data_dir_that_cannot_be_written_is_refused(offline, tmp_path):
    """A file in the folder's place."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="MNIST is missing"):
        SplitMNIST(data_dir=tmp_path / "file").check_data()


@pytest.mark.ci
def test_download_fills_what_is_missing(archives, monkeypatch, tmp_path):
    """The archives come from the published address (here this machine); both forms are kept."""
    handler = partial(QuietHandler, directory=archives / "MNIST" / "raw")
    target = tmp_path / "new" / "data"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr("seqrun.benchmarks.mnist._URL", url)
        Thread(target=server.serve_forever).start()
        try:
            load_mnist(target)
        finally:
            server.shutdown()
    assert sorted(p.name for p in (target / "MNIST" / "raw").iterdir()) == sorted(
        [*NAMES, *(f"{name}.gz" for name in NAMES)]
    )
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_default_folder_is_seqrun_data_else_data(monkeypatch, offline, tmp_path):
    """The environment variable first, then ./data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQRUN_DATA", str(tmp_path / "there"))
    with pytest.raises(ConfigError, match=f"data_dir={tmp_path / 'there'}:"):
        RotatedMNIST().check_data()
    monkeypatch.delenv("SEQRUN_DATA")
    with pytest.raises(ConfigError, match="data_dir=data: .* data/MNIST/raw"):
        RotatedMNIST().check_data()
    assert list(tmp_path.iterdir()) == []

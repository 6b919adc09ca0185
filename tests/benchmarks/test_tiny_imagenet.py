"""Tiny ImageNet: the official constants, and sets of the same layout."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.generators import (
    pixels,
    tiny_imagenet_files,
    tiny_imagenet_tree,
    write_tree,
    write_zip,
)

from seqrun.benchmarks import SplitTinyImageNet, images
from seqrun.benchmarks.split import Split
from seqrun.benchmarks.tiny_imagenet import TINY_IMAGENET, TINY_IMAGENET_FILES, tiny_imagenet_source
from seqrun.checks import ConfigError

IDS = ["n01", "n02", "n03", "n04"]
NAME = "tiny-imagenet-200"


def source_of(root, tree, *, unpacked=False):
    """Write a set and return its source."""
    if unpacked:
        write_tree(root / NAME, tree)
        return tiny_imagenet_source(tiny_imagenet_files())
    path = write_zip(root / f"{NAME}.zip", tree, f"{NAME}/")
    return tiny_imagenet_source(tiny_imagenet_files(path.read_bytes()))


def test_the_published_set():
    """Name, checksum, sizes."""
    assert TINY_IMAGENET_FILES.archive == "tiny-imagenet-200.zip"
    assert TINY_IMAGENET_FILES.md5 == "90528d7ca1a48142e341f4ef8d21d0de"
    assert TINY_IMAGENET_FILES.url == "http://cs231n.stanford.edu/"
    assert (TINY_IMAGENET.num_classes, sum(TINY_IMAGENET.train_counts)) == (200, 100000)
    assert SplitTinyImageNet().input_shape == (64, 64, 3)
    assert SplitTinyImageNet().num_tasks == 20
    # As Mammoth has them (datasets/seq_tinyimagenet.py), which measured the training images.
    transform = SplitTinyImageNet(normalize=True).transform
    assert transform.mean == pytest.approx((0.4802, 0.4480, 0.3975), abs=2e-4)
    assert transform.std == pytest.approx((0.2770, 0.2691, 0.2821), abs=2e-4)


@pytest.mark.parametrize("unpacked", [False, True])
def test_pixels_labels_and_order(tmp_path, unpacked, streams):
    """PIL's pixels, classes by sorted id, validation images as test data."""
    tree = tiny_imagenet_tree()
    source = source_of(tmp_path, tree, unpacked=unpacked)
    raw = source.load(tmp_path)
    names = [f"train/{wnid}/images/{wnid}_{n}.JPEG" for wnid in IDS for n in range(3)]
    np.testing.assert_array_equal(raw.x_train, [pixels(tree[name]) for name in names])
    assert raw.y_train.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    grey = raw.x_train[names.index("train/n02/images/n02_1.JPEG")]
    assert (grey[..., 0] == grey[..., 2]).all() and grey.std() > 1
    of_image = dict(
        line.split("\t")[:2] for line in tree["val/val_annotations.txt"].decode().splitlines()
    )
    for x, y in zip(raw.x_test, raw.y_test, strict=True):
        same = [n for n in of_image if (pixels(tree[f"val/images/{n}"]) == x).all()]
        assert [of_image[n] for n in same] == [IDS[y]]

    class Tiny(Split):
        pass

    Tiny.source = source
    stream = Tiny(num_tasks=2, data_dir=tmp_path)
    stream.prepare(streams)
    np.testing.assert_array_equal(stream.task_data(2).x, raw.x_train[6:])
    assert stream.task_data(2, "test").y.tolist() == [2, 2, 3, 3]


def test_decoded_once(tmp_path, monkeypatch):
    """The second time maps the file, even if the archive is gone."""
    source = source_of(tmp_path, tiny_imagenet_tree())
    first = source.load(tmp_path)
    monkeypatch.setattr(images, "decode", None)
    (tmp_path / f"{NAME}.zip").unlink()
    again = source.load(tmp_path)
    assert isinstance(again.x_train, np.memmap)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_changed_folder_is_decoded_anew(tmp_path):
    """Any other size or time of a file."""
    tree = tiny_imagenet_tree()
    source = source_of(tmp_path, tree, unpacked=True)
    before = np.array(source.load(tmp_path).x_train)
    name = "train/n01/images/n01_0.JPEG"
    (tmp_path / NAME / name).write_bytes(tiny_imagenet_tree(seed=1)[name])
    assert (source.load(tmp_path).x_train[0] != before[0]).any()


def test_what_is_read_enters_the_hash(tmp_path):
    """The archive by its md5, which is checked; a folder by its files, which nobody has checked."""
    tree = tiny_imagenet_tree()

    def checksum(source, root):
        class Tiny(Split):
            pass

        Tiny.source = source
        return Tiny(num_tasks=2, data_dir=root).data_checksum()

    archive = source_of(tmp_path / "a", tree)
    assert checksum(archive, tmp_path / "a") == archive.checksum
    write_tree(tmp_path / "a" / NAME, tree)  # the archive goes first
    assert checksum(archive, tmp_path / "a") == archive.checksum
    archive.load(tmp_path / "a")
    (tmp_path / "a" / f"{NAME}.zip").unlink()  # what was decoded from it is still what is read
    assert checksum(archive, tmp_path / "a") == archive.checksum
    folder = source_of(tmp_path / "b", tree, unpacked=True)
    before = checksum(folder, tmp_path / "b")
    assert before != folder.checksum
    folder.load(tmp_path / "b")
    assert checksum(folder, tmp_path / "b") == before
    name = "train/n01/images/n01_0.JPEG"
    (tmp_path / "b" / NAME / name).write_bytes(tiny_imagenet_tree(seed=1)[name])
    assert checksum(folder, tmp_path / "b") not in (before, folder.checksum)


def without(name):
    """Return the tree without a file."""
    return {key: value for key, value in tiny_imagenet_tree().items() if key != name}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (without("wnids.txt"), "wnids.txt is missing"),
        (without("val/val_annotations.txt"), "val_annotations.txt is missing"),
        (without("val/images/val_3.JPEG"), "val/images/val_3.JPEG is missing"),
        (without("train/n04/images/n04_1.JPEG"), "train has 2 images of class n04, must have 3"),
        (tiny_imagenet_tree() | {"wnids.txt": b"n01\nn02\nn03\n"}, "must name 4 classes"),
        (tiny_imagenet_tree() | {"wnids.txt": b"n01\nn02\nn03\nn05\n"}, "not in wnids.txt"),
        (
            tiny_imagenet_tree() | {"train/n04/images/n04_2.JPEG": b"nothing"},
            "train/n04/images/n04_2.JPEG cannot be read as an image",
        ),
        (
            tiny_imagenet_tree()
            | {"val/images/val_0.JPEG": tiny_imagenet_tree(size=32)["val/images/val_0.JPEG"]},
            "the set has 64 x 64 pixels .*, val/images/val_0.JPEG has 32 x 32",
        ),
    ],
)
@pytest.mark.parametrize("unpacked", [False, True])
def test_bad_sets(tmp_path, tree, message, unpacked):
    """Each is named, and nothing half made stays."""
    source = source_of(tmp_path, tree, unpacked=unpacked)
    with pytest.raises(ConfigError, match=f"^data_dir=.*{message}"):
        source.check(tmp_path)
    assert not (tmp_path / ".seqrun").exists()


def test_truncated_archive_and_none(tmp_path):
    """A wrong checksum, and no connection."""
    source = source_of(tmp_path, tiny_imagenet_tree())
    path = tmp_path / f"{NAME}.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ConfigError, match=f"{path} is truncated or another file"):
        source.check(tmp_path)
    with pytest.raises(ConfigError, match=f"put {NAME}.zip .* or the folder {NAME} into"):
        source.check(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()

"""A user's own images, in a folder or an archive."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import textwrap
import time
from zlib import compress, crc32

import numpy as np
import pytest
from benchmarks.generators import encoded, image_tree, picture, pixels, write_tree, write_zip
from PIL import Image

from seqrun.benchmarks import SplitImageFolder, images
from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF

CLASSES = ["ant", "bee", "cat", "dog"]


def make(path, tree, form="folder"):
    """Write a set as a folder, an archive, or an archive with one top folder."""
    if form == "folder":
        return write_tree(path, tree)
    return write_zip(path.with_suffix(".zip"), tree, "top/" if form == "top" else "")


def by_class(tree, split):
    """Return the pixels and labels of a split, as PIL and sorted() have them."""
    names = sorted(name for name in tree if name.startswith(f"{split}/"))
    return [pixels(tree[n]) for n in names], [CLASSES.index(n.split("/")[1]) for n in names]


@pytest.mark.parametrize("form", ["folder", "zip", "top"])
def test_pixels_labels_and_tasks(tmp_path, form, streams):
    """PIL's pixels in sorted order; what is hidden or not in the two folders is left alone."""
    tree = image_tree()
    extra = {"train/.DS_Store": b"", "test/cat/.x.jpg": b""}
    extra |= {"__MACOSX/train/cat/._0.jpg": b""} if form == "zip" else {"notes.txt": b"mine"}
    path = make(tmp_path / "mine", tree | extra, form)
    stream = SplitImageFolder(path=str(path), num_tasks=2)
    assert stream.input_shape == (8, 10, 3) and stream.num_classes == 4
    stream.check_data()
    stream.prepare(streams)
    for split in ("train", "test"):
        x, y = by_class(tree, split)
        half = len(y) // 2
        for task, part in ((1, slice(half)), (2, slice(half, None))):
            data = stream.task_data(task, split)
            np.testing.assert_array_equal(data.x, x[part])
            assert data.y.tolist() == y[part]


def test_normalized_by_its_own_pixels(tmp_path, streams):
    """The mean and deviation of the training images."""
    tree = image_tree()
    stream = SplitImageFolder(path=make(tmp_path / "x", tree), num_tasks=2, normalize=True)
    stream.prepare(streams)
    x = np.stack(by_class(tree, "train")[0]) / 255
    np.testing.assert_allclose(stream.transform.mean, x.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(stream.transform.std, x.std((0, 1, 2)), rtol=1e-12)


def test_decoded_once_and_mapped(tmp_path, streams, monkeypatch):
    """The second time reads no image; a changed file is seen."""
    path = make(tmp_path / "x", image_tree())
    SplitImageFolder(path=path, num_tasks=2).check_data()
    with monkeypatch.context() as patched:
        patched.setattr(images, "decode", None)
        again = SplitImageFolder(path=path, num_tasks=2)
        again.prepare(streams)
        assert isinstance(again.source.load(None).x_train, np.memmap)
        assert type(again.task_data(1).x) is np.ndarray
    changed = encoded(picture(np.random.default_rng(9), 8, 10))
    (path / "train/ant/0000.jpg").write_bytes(changed)
    other = SplitImageFolder(path=path, num_tasks=2)
    assert other.data_checksum() != again.data_checksum()
    np.testing.assert_array_equal(other.source.load(None).x_train[0], pixels(changed))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_another_image_of_the_same_size_in_bytes_is_seen(tmp_path, form):
    """By its time of change in a folder, by its CRC in an archive."""
    name, found = "train/ant/0000.jpg", []
    for seed in (1, 2):
        content = encoded(picture(np.random.default_rng(seed), 8, 10)).ljust(4000, b"\0")
        path = make(tmp_path / "x", image_tree() | {name: content}, form)
        stream = SplitImageFolder(path=path, num_tasks=2)
        np.testing.assert_array_equal(stream.source.load(None).x_train[0], pixels(content))
        found.append(stream.data_checksum())
    assert found[0] != found[1]


def test_resized(tmp_path):
    """Mixed sizes are allowed with image_size; PIL's bilinear filter."""
    tree = image_tree() | {"train/bee/0001.png": encoded(picture(np.random.default_rng(3), 9, 20))}
    stream = SplitImageFolder(path=make(tmp_path / "x", tree), num_tasks=2, image_size=7)
    raw = stream.source.load(None)
    assert raw.x_train.shape == (24, 7, 7, 3)
    other = SplitImageFolder(path=tmp_path / "x", num_tasks=2, image_size=6)
    assert other.source.load(None).x_train.shape == (24, 6, 6, 3)
    name = "train/bee/0001.png"
    wanted = Image.open(io.BytesIO(tree[name])).resize((7, 7), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(raw.x_train[7], np.asarray(wanted))
    with pytest.raises(ConfigError, match="image_size=0: must be an integer >= 1"):
        SplitImageFolder(path=tmp_path / "x", image_size=0)


def test_modes(tmp_path):
    """Grey, palette, transparent and CMYK images become RGB; 16 bits are refused."""
    base = Image.fromarray(picture(np.random.default_rng(0), 8, 10))
    tree = image_tree()
    for n, (mode, form) in enumerate(
        [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG")]
    ):
        stream = io.BytesIO()
        base.convert(mode).save(stream, form)
        tree[f"train/ant/1{n}.png"] = stream.getvalue()
    path = make(tmp_path / "x", tree)
    raw = SplitImageFolder(path=path, num_tasks=2).source.load(None)
    np.testing.assert_array_equal(raw.x_train, by_class(tree, "train")[0])
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 10), 40000, np.uint16)).save(deep, "PNG")
    (path / "test/dog/9.png").write_bytes(deep.getvalue())
    with pytest.raises(ConfigError, match="test/dog/9.png cannot be read .* 8 bits per channel"):
        SplitImageFolder(path=path, num_tasks=2).check_data()


def deep_png(colour_type, height=8, width=10):
    """Return a PNG file with 16 bits per channel, written by hand (PIL cannot)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    row = b"\0" + bytes(2 * width * {0: 1, 2: 3, 4: 2, 6: 4}[colour_type])
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", compress(row * height)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
def test_sixteen_bits_of_any_kind_are_refused(tmp_path, colour_type):
    """Grey, RGB, grey and alpha, RGBA: PIL gives the upper 8 bits of all but the first."""
    content = deep_png(colour_type)
    assert Image.open(io.BytesIO(content)).size == (10, 8)
    path = make(tmp_path / "x", image_tree() | {"test/dog/9.png": content})
    with pytest.raises(ConfigError) as caught:
        SplitImageFolder(path=path, num_tasks=2).check_data()
    assert "test/dog/9.png cannot be read as an image: " in str(caught.value)
    assert str(caught.value).endswith("must have 8 bits per channel")
    assert not list(tmp_path.rglob(".seqrun"))


@pytest.mark.parametrize("name", ["train/ant/0000.jpg", "train/cat/0002.JPEG"])
def test_the_reason_speaks_of_no_object_in_memory(tmp_path, name):
    """The first image, whose size is read, and any other."""
    path = make(tmp_path / "x", image_tree() | {name: b"text"})
    with pytest.raises(ConfigError) as caught:
        SplitImageFolder(path=path, num_tasks=2).check_data()
    assert str(caught.value) == (
        f"benchmark.path={path}: {name} cannot be read as an image: cannot identify image file"
    )


def test_one_colour_cannot_be_normalised(tmp_path):
    """Said when the data are looked for, not in the run."""
    flat = encoded(np.full((8, 10, 3), 9, np.uint8), "PNG")
    names = [n for n in image_tree() if n.startswith("train/")]
    tree = image_tree() | dict.fromkeys(names, flat)
    path = make(tmp_path / "x", tree)
    SplitImageFolder(path=path, num_tasks=2).check_data()
    with pytest.raises(ConfigError, match="normalize=True: must be false, since all training pix"):
        SplitImageFolder(path=path, num_tasks=2, normalize=True).check_data()


def test_each_size_is_measured_by_itself(tmp_path, streams):
    """The same files resized are other pixels."""
    path = make(tmp_path / "x", image_tree())
    for size in (7, 3):
        stream = SplitImageFolder(path=path, num_tasks=2, normalize=True, image_size=size)
        stream.prepare(streams)
        pixels_of = stream.source.load(None).x_train / 255
        np.testing.assert_allclose(stream.transform.std, pixels_of.std((0, 1, 2)), rtol=1e-12)


def without(prefix):
    """Return the tree without what begins so."""
    return {key: value for key, value in image_tree().items() if not key.startswith(prefix)}


BIG = encoded(picture(np.random.default_rng(3), 9, 12))
BAD = {
    "class missing in test": (
        without("test/bee/"),
        "class 'bee' is in train/ but not in test/, must be in both",
    ),
    "class missing in train": (without("train/cat/"), "class 'cat' is in test/ but not in train/"),
    "no test": (without("test/"), "has no test/<class>/"),
    "no train": (without("train/"), "has no train/<class>/"),
    "other suffix": (image_tree() | {"train/ant/x.gif": b""}, "train/ant/x.gif: must end in .jpg"),
    "no class": (image_tree() | {"test/x.png": b""}, "test/x.png: must lie in test/<class>/"),
    "too deep": (image_tree() | {"train/ant/a/x.png": b""}, "train/ant/a/x.png: must lie in train"),
    "mixed sizes": (
        image_tree() | {"test/cat/0001.png": BIG},
        r"train/ant/0000.jpg has 10 x 8 pixels \(width x height\), test/cat/0001.png has 12 x 9",
    ),
    "no image": (
        image_tree() | {"train/cat/0002.JPEG": b"text"},
        "train/cat/0002.JPEG cannot be read as an image",
    ),
    "first is no image": (
        image_tree() | {"train/ant/0000.jpg": b""},
        "train/ant/0000.jpg cannot be read as an image",
    ),
    "truncated image": (
        image_tree() | {"test/dog/0000.jpg": image_tree()["test/dog/0000.jpg"][:-150]},
        "test/dog/0000.jpg cannot be read as an image: .*[Tt]runcated",
    ),
    "truncated png": (
        image_tree() | {"test/dog/0001.png": image_tree()["test/dog/0001.png"][:-60]},
        "test/dog/0001.png cannot be read as an image",
    ),
}


@pytest.mark.parametrize("form", ["folder", "top"])
@pytest.mark.parametrize("case", BAD)
def test_bad_sets(tmp_path, case, form):
    """One line that names the file; nothing half made stays."""
    tree, message = BAD[case]
    path = make(tmp_path / "x", tree, form)
    with pytest.raises(ConfigError, match=f"^benchmark.path={path}: .*{message}") as caught:
        SplitImageFolder(path=path, num_tasks=2).check_data()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(".seqrun"))


def test_empty_class_and_paths(tmp_path):
    """A folder that is there and holds nothing, and paths that are not given or not there."""
    path = make(tmp_path / "x", image_tree())
    for split in ("train", "test"):
        (path / split / "eel").mkdir()
    with pytest.raises(ConfigError, match="train/eel/ holds no images"):
        SplitImageFolder(path=path)
    with pytest.raises(ConfigError, match="^benchmark.path: must be given"):
        SplitImageFolder()
    with pytest.raises(ConfigError, match="^benchmark.path=/nonexistent: does not exist"):
        SplitImageFolder(path="/nonexistent")
    with pytest.raises(ConfigError, match=r"benchmark.num_tasks=7: must divide the 4 .* \(1, 2\)$"):
        SplitImageFolder(path=make(tmp_path / "y", image_tree()), num_tasks=7)


def test_place_of_the_decoded_images(tmp_path, monkeypatch):
    """The user's cache if nothing can be written beside the data; a message if neither."""
    path = make(tmp_path / "x", image_tree())
    (path / ".seqrun").write_text("a file in the folder's place", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stream = SplitImageFolder(path=path, num_tasks=2)
    stream.check_data()
    (kept,) = (tmp_path / "cache" / "seqrun").iterdir()
    assert sorted(p.name for p in kept.iterdir()) == [
        "x_test.npy", "x_train.npy", "y_test.npy", "y_train.npy",
    ]  # fmt: skip
    monkeypatch.setattr(images, "decode", None)
    assert len(stream.source.load(None).x_train) == 24
    monkeypatch.setenv("XDG_CACHE_HOME", str(path / ".seqrun"))
    with pytest.raises(ConfigError, match="no place for the decoded images"):
        stream.check_data()


def test_damaged_decoded_images_are_named(tmp_path):
    """What someone truncated later."""
    path = make(tmp_path / "x", image_tree())
    stream = SplitImageFolder(path=path, num_tasks=2)
    stream.check_data()
    (array,) = (path / ".seqrun").glob("*/x_train.npy")
    array.write_bytes(array.read_bytes()[:-5])
    with pytest.raises(ConfigError, match=f"{array.parent} is damaged .*: delete it"):
        stream.check_data()


def test_too_little_space(tmp_path, monkeypatch):
    """Said before anything is written."""
    stream = SplitImageFolder(path=make(tmp_path / "x", image_tree()), num_tasks=2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ConfigError, match="MiB are free"):
        stream.check_data()


@pytest.mark.ci
def test_two_processes_at_once(tmp_path):
    """Both get the images; one set is kept and no unfinished one."""
    path = make(tmp_path / "x", image_tree(train=60))
    code = """
        import sys, time
        from seqrun.benchmarks import SplitImageFolder
        stream = SplitImageFolder(path=sys.argv[1], num_tasks=2)
        time.sleep(max(0, float(sys.argv[2]) - time.time()))
        print(int(stream.source.load(None).x_train.astype(int).sum()))
    """
    started = str(time.time() + 1.5)
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), started]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [err for _, err in outputs] == ["", ""]
    assert outputs[0][0] == outputs[1][0] != ""
    assert len(list((path / ".seqrun").iterdir())) == 1


@pytest.mark.parametrize(
    ("case", "expected"),
    [("truncated image", "test/dog/0000.jpg cannot be read"), ("mixed sizes", "differ in size")],
)
def test_command_line_says_so_before_anything_starts(tmp_path, case, expected, monkeypatch, capfd):
    """Exit code, one line, no directory."""
    path = make(tmp_path / "x", BAD[case][0])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    argv = ["benchmark=split_image_folder", f"benchmark.path={path}", "benchmark.num_tasks=2"]
    assert preflight.main(argv, CONF) == preflight.BAD_INPUT
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1
    assert err.startswith(f"error: benchmark.path={path}: ") and expected in err
    assert not list((tmp_path / "here").iterdir())


def test_command_line_without_a_path(tmp_path, monkeypatch, capfd):
    """The key is named."""
    monkeypatch.chdir(tmp_path)
    for name in ("split_image_folder", "split_npz"):
        assert preflight.main([f"benchmark={name}"], CONF) == preflight.BAD_INPUT
        assert capfd.readouterr().err.startswith("error: benchmark.path: must be given: ")


@pytest.mark.ci
def test_hash_is_that_of_the_data_wherever_they_are(tmp_path, monkeypatch):
    """An archive that is moved is the same experiment; one with other images is not."""
    monkeypatch.chdir(tmp_path)
    paths = [make(tmp_path / name, image_tree(seed=seed), "zip") for name, seed in
             (("a/x", 0), ("b/y", 0), ("c/x", 1))]  # fmt: skip
    hashes = [
        preflight.check(
            ["benchmark=split_image_folder", f"benchmark.path={path}", "benchmark.num_tasks=2"],
            CONF,
        )[0].hash
        for path in paths
    ]
    assert hashes[0] == hashes[1] != hashes[2]

"""A user's own arrays."""

from __future__ import annotations

import zipfile
from io import BytesIO

import numpy as np
import pytest
from benchmarks.generators import npz_arrays

from seqrun.benchmarks import SplitNPZ
from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.cli.listing import CONF


def save(path, arrays, *, compressed=False):
    """Write a .npz file."""
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 1)])
def test_arrays_come_back(tmp_path, streams, shape, compressed):
    """Every task has its rows, in order; (N, H, W) gets a channel."""
    arrays = npz_arrays(shape=shape)
    stream = SplitNPZ(path=save(tmp_path / "a.npz", arrays, compressed=compressed), num_tasks=2)
    assert stream.input_shape == (*shape, 1)[:3] and stream.num_classes == 4
    stream.prepare(streams)
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        for task in (1, 2):
            rows = (y // 2) == task - 1
            data = stream.task_data(task, split)
            np.testing.assert_array_equal(data.x.reshape(-1, *shape), x[rows])
            np.testing.assert_array_equal(data.y, y[rows])
    assert isinstance(stream.source.load(None).x_train, np.memmap)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64, np.int64])
def test_any_integer_labels(tmp_path, kind):
    """They become int32."""
    arrays = npz_arrays()
    arrays |= {name: arrays[name].astype(kind) for name in ("y_train", "y_test")}
    stream = SplitNPZ(path=save(tmp_path / "a.npz", arrays), num_tasks=2)
    assert stream.source.load(None).y_test.dtype == np.int32


def test_normalized_and_unchanged_by_a_second_look(tmp_path, streams):
    """Exact mean and deviation of the training pixels."""
    arrays = npz_arrays()
    path = save(tmp_path / "a.npz", arrays)
    stream = SplitNPZ(path=path, num_tasks=2, normalize=True)
    stream.prepare(streams)
    x = arrays["x_train"] / 255
    np.testing.assert_allclose(stream.transform.mean, x.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(stream.transform.std, x.std((0, 1, 2)), rtol=1e-12)
    assert SplitNPZ(path=path, num_tasks=2).data_checksum() == stream.data_checksum()
    arrays["x_test"][0, 0, 0, 0] ^= 1
    save(path, arrays)
    other = SplitNPZ(path=path, num_tasks=2)
    assert other.data_checksum() != stream.data_checksum()
    np.testing.assert_array_equal(other.source.load(None).x_test, arrays["x_test"])


def changed(**arrays):
    """Return good arrays with some replaced; None takes one away."""
    return {k: v for k, v in (npz_arrays() | arrays).items() if v is not None}


Y = npz_arrays()["y_train"]
BAD = {
    "missing array": (changed(y_test=None), "lacks y_test, has x_train, y_train, x_test"),
    "floats": (changed(x_train=np.zeros((24, 6, 5, 3))), "x_train is float64 .*must be uint8"),
    "two axes": (changed(x_train=np.zeros((24, 90), np.uint8)), r"must be \(N, H, W\) or"),
    "channels first": (
        changed(x_train=np.zeros((24, 3, 32, 32), np.uint8)),
        r"x_train is uint8 of shape \(24, 3, 32, 32\), must be .* C of 1 to 4, the last",
    ),
    "other size": (
        changed(x_test=np.zeros((8, 5, 6, 3), np.uint8)),
        r"images differ in size: \(6, 5, 3\) in x_train, \(5, 6, 3\) in x_test",
    ),
    "fewer labels": (changed(y_train=Y[:-1]), "x_train has 24 images, y_train 23 labels"),
    "float labels": (changed(y_train=Y / 1), "y_train is float64 .*must be integers"),
    "column of labels": (changed(y_train=Y[:, None]), r"y_train is .*\(24, 1\), must be \(N,\)"),
    "negative label": (changed(y_train=Y - 1), "y_train has the label -1, must be 0, 1"),
    "huge label": (changed(y_train=Y + 10**12), "y_train has the label 1000000000000"),
    "label left out": (changed(y_train=np.where(Y == 1, 0, Y)), "y_train has no sample of class 1"),
    "unknown test label": (
        changed(y_test=np.full(8, 4)),
        r"y_test has the label 4, must be in 0\.\.3, those of y_train",
    ),
    "negative test label": (changed(y_test=np.full(8, -1)), "y_test has the label -1"),
    "class not in test": (changed(y_test=np.arange(8) % 3), "y_test has no sample of class 3"),
    "empty": (changed(x_test=np.zeros((0, 6, 5, 3), np.uint8)), "x_test .*must not be empty"),
    "objects": (changed(y_train=np.array([{}] * 24)), "y_train is object .*must be integers"),
    "object images": (changed(x_train=np.array([{}] * 24)), "x_train is object .*must be uint8"),
    "Fortran order": (
        changed(x_train=np.asfortranarray(npz_arrays()["x_train"])),
        r"Fortran order, must be saved as np.ascontiguousarray\(x_train\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(tmp_path, case):
    """The array is named when the benchmark is made; nothing is written."""
    arrays, message = BAD[case]
    path = save(tmp_path / "a.npz", arrays)
    with pytest.raises(ConfigError, match=f"^benchmark.path={path}: .*{message}") as caught:
        SplitNPZ(path=path, num_tasks=2)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def rewritten(path, name, content):
    """Write an archive with the content of one member replaced."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    members[name] = content(members[name])
    with zipfile.ZipFile(path, "w") as new:
        for member, data in members.items():
            new.writestr(member, data)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x_train.npy", lambda old: old[:-1], "x_train is .*which is 2160 bytes, but has 2159"),
        ("x_train.npy", lambda old: old + b"0", "but has 2161"),
        ("x_test.npy", lambda old: b"text", "x_test cannot be read"),
        ("y_test.npy", lambda old: old[:9], "y_test cannot be read"),
    ],
)
def test_bad_members(tmp_path, name, content, message):
    """Their headers are checked against their sizes."""
    path = rewritten(save(tmp_path / "a.npz", npz_arrays()), name, content)
    with pytest.raises(ConfigError, match=message):
        SplitNPZ(path=path, num_tasks=2)


def test_bad_files(tmp_path):
    """Truncated, no archive, no file, a folder, a single array; damage inside is found."""
    good = save(tmp_path / "a.npz", npz_arrays()).read_bytes()
    single = BytesIO()
    np.save(single, np.zeros(3))
    for content in (good[:-100], b"", b"text", single.getvalue()):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(ConfigError, match="b.npz: not a zip archive, or truncated"):
            SplitNPZ(path=tmp_path / "b.npz")
    with pytest.raises(ConfigError, match="is a folder, must be a .npz file"):
        SplitNPZ(path=tmp_path)
    with pytest.raises(ConfigError, match="does not exist; must be a .npz file"):
        SplitNPZ(path=tmp_path / "c.npz")
    with pytest.raises(ConfigError, match="benchmark.path: must be given"):
        SplitNPZ()
    arrays = npz_arrays(shape=(40, 40, 3))
    good = save(tmp_path / "a.npz", arrays).read_bytes()
    pixels = arrays["x_test"].tobytes()[-60:]
    damaged = good.replace(pixels, pixels[::-1])
    assert damaged != good
    (tmp_path / "d.npz").write_bytes(damaged)
    stream = SplitNPZ(path=tmp_path / "d.npz", num_tasks=2)
    with pytest.raises(ConfigError, match="x_test cannot be read: Bad CRC-32"):
        stream.check_data()
    assert not (tmp_path / ".seqrun").exists()


@pytest.mark.ci
def test_command_line(tmp_path, monkeypatch, capfd):
    """The whole message of a label out of range, and of a key out of range."""
    path = save(tmp_path / "a.npz", BAD["unknown test label"][0])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    argv = ["benchmark=split_npz", f"benchmark.path={path}"]
    assert preflight.main([*argv, "benchmark.num_tasks=2"], CONF) == preflight.BAD_INPUT
    assert capfd.readouterr().err == (
        f"error: benchmark.path={path}: y_test has the label 4, must be in 0..3, those of y_train\n"
    )
    save(path, npz_arrays())
    assert preflight.main(argv, CONF) == preflight.BAD_INPUT
    assert "benchmark.num_tasks=5: must divide the 4 classes" in capfd.readouterr().err
    assert preflight.main([*argv, "benchmark.num_tasks=2"], CONF) == 0
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.ci
@pytest.mark.parametrize("multirun", [(), ("-m", "seed=0,1")])
def test_what_cannot_be_normalised_is_found_before_anything_starts(
    tmp_path, monkeypatch, capfd, multirun
):
    """A channel in which all training pixels are equal; without normalising it is no matter."""
    arrays = npz_arrays()
    arrays["x_train"][..., 1] = 7
    path = save(tmp_path / "a.npz", arrays)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    argv = [*multirun, "benchmark=split_npz", f"benchmark.path={path}", "benchmark.num_tasks=2"]
    assert preflight.main([*argv, "benchmark.normalize=true"], CONF) == preflight.BAD_INPUT
    assert capfd.readouterr().err == (
        "error: benchmark.normalize=True: must be false, since all training pixels of channel 1 "
        "are equal\n"
    )
    assert preflight.main(argv, CONF) == 0
    assert not list((tmp_path / "here").iterdir())


def test_crops_of_images_of_any_size(tmp_path):
    """The shorter side of 6 x 5 is the most."""
    path = save(tmp_path / "a.npz", npz_arrays())
    assert SplitNPZ(path=path, num_tasks=2, crop_padding=5).crop_padding == 5
    with pytest.raises(ConfigError, match="benchmark.crop_padding=6: must be at most 5"):
        SplitNPZ(path=path, num_tasks=2, crop_padding=6)

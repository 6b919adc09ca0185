"""Atomic writes and the plain formats."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from seqrun import files
from seqrun.files import matrix_from_csv, matrix_to_csv, to_json, write_atomically, write_json
from seqrun.records import checkpoint
from seqrun.records.progress import COUNTERS


def test_text_and_bytes_and_missing_directories(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, "naïve\n")
    assert path.read_bytes() == b"na\xc3\xafve\n"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_reader_never_sees_a_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    replace, seen = os.replace, []

    def look_first(source, target):
        seen.append(path.read_text(encoding="utf-8"))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", look_first)
    write_atomically(path, "new")
    assert seen == ["old"]
    assert path.read_text(encoding="utf-8") == "new"


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_has_no_nan_and_keeps_the_order(tmp_path):
    value = {
        "z": np.array([[0.5, np.nan]]),
        "a": [float("inf"), np.float32(0.25), np.int64(3), np.bool_(True)],
        "m": {"path": tmp_path, "none": None, 1: (1, 2)},
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {
        "z": [[0.5, None]],
        "a": [None, 0.25, 3, True],
        "m": {"path": str(tmp_path), "none": None, "1": [1, 2]},
    }
    assert list(json.loads(text)) == ["z", "a", "m"]
    assert text == to_json(value)


def test_matrix_csv():
    matrix = np.array([[0.1, 0.2], [0.9, np.nan], [1 / 3, 1.0]])
    text = matrix_to_csv(matrix)
    assert text.splitlines() == [
        "after_task,task_1,task_2",
        "0,0.1,0.2",
        "1,0.9,",
        "2,0.3333333333333333,1.0",
    ]
    np.testing.assert_array_equal(matrix_from_csv(text), matrix)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list of what is synced and renamed, in order."""
    calls: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def noting_sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append((kind, os.path.basename(path)))
        sync(descriptor)

    def noting_replace(source, target) -> None:
        calls.append(("name", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "replace", noting_replace)
    return calls


def test_the_new_name_reaches_the_disk_too(tmp_path, monkeypatch):
    """First the content is synced, then it is renamed, then the directory is synced."""
    calls = recorded(monkeypatch)
    write_atomically(tmp_path / "a.json", "x")
    assert [kind for kind, _ in calls] == ["file", "name", "folder"]
    assert calls[0][1] != "a.json" and calls[1:] == [("name", "a.json"), ("folder", tmp_path.name)]


def test_a_checkpoints_name_reaches_the_disk_too(tmp_path, monkeypatch):
    """Both files, the folder that names them, its name, the folder around it."""
    counters = dict.fromkeys(COUNTERS, 0)
    counters |= {"global_step": 7, "task_is_done": False, "task_losses": [], "timing": {}}
    state = {"counters": counters, "callbacks": {}, "loggers": {}}
    calls = recorded(monkeypatch)
    made = checkpoint.Checkpoint({"a": np.ones(3)}, state)
    checkpoint.save(made, tmp_path, config_hash="abc")
    assert [kind for kind, _ in calls] == ["file", "file", "folder", "name", "folder"]
    assert calls[2][1].startswith(".000000007.")
    assert calls[3:] == [("name", "000000007"), ("folder", checkpoint.FOLDER)]

"""Generate malformed plain data and safetensors files, the same at every run."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[Any, ...]

HOSTILE: tuple[Any, ...] = (
    None, True, "", "text", "../../etc/passwd", "${oc.env:PATH}", -1, 0.5, 10**30, 1e308,
    float("nan"), float("inf"), [], {}, [[]], [None], {"x": 1}, [1, "a"], ["a"] * 3,
)  # fmt: skip


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of everything in `value`; of a list, only of its first element."""
    if isinstance(value, Mapping):
        steps: list[Any] = list(value)
    elif isinstance(value, list):
        steps = [0][: len(value)]
    else:
        return
    for step in steps:
        yield (*path, step)
        yield from places(value[step], (*path, step))


def replaced(value: Any, path: Path, by: Any) -> Any:
    """Return a copy with another value at `path`."""
    value = copy.deepcopy(value)
    node = value
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = copy.deepcopy(by)
    return value


def without(value: Any, path: Path) -> Any:
    """Return a copy without the entry at `path`."""
    value = copy.deepcopy(value)
    node = value
    for step in path[:-1]:
        node = node[step]
    del node[path[-1]]
    return value


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with this header, whose stated length may be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(kind: str, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    """Return the header's entry of a tensor."""
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


FILES: dict[str, bytes] = {
    "empty": b"",
    "no header": b"\x00" * 8,
    "short": b"\x01\x00",
    "header of 2^63 bytes": safetensors({}, length=2**63),
    "header of 1 TiB": safetensors({}, length=2**40),
    "header beyond the file": safetensors({}, length=1000),
    "header is no JSON": safetensors(b"not json"),
    "header is a list": safetensors([1, 2]),
    "header is deep": safetensors(b"[" * 100_000),
    "header is not UTF-8": safetensors(b"\xff\xfe{}"),
    "huge shape": safetensors({"a": entry("F32", [2**40], 0, 4)}, b"\0" * 4),
    "shape that overflows": safetensors({"a": entry("F32", [2**62, 2**62], 0, 4)}, b"\0" * 4),
    "negative shape": safetensors({"a": entry("F32", [-1], 0, 4)}, b"\0" * 4),
    "shape of text": safetensors({"a": entry("F32", ["a"], 0, 4)}, b"\0" * 4),
    "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4),
    "unknown type": safetensors({"a": entry("PICKLE", [1], 0, 4)}, b"\0" * 4),
    "offsets beyond the data": safetensors({"a": entry("F32", [100], 0, 400)}, b"\0" * 4),
    "offsets backwards": safetensors({"a": entry("F32", [1], 4, 0)}, b"\0" * 4),
    "negative offsets": safetensors({"a": entry("F32", [1], -4, 0)}, b"\0" * 4),
    "offsets that overlap": safetensors(
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"\0" * 4
    ),
    "a gap": safetensors({"a": entry("F32", [1], 4, 8)}, b"\0" * 8),
    "data behind": safetensors({"a": entry("F32", [1], 0, 4)}, b"\0" * 8),
    "NaN": safetensors({"params/a": entry("F32", [1], 0, 4)}, b"\x00\x00\xc0\x7f"),
    "infinity": safetensors({"params/a": entry("F64", [1], 0, 8)}, struct.pack("<d", 1e999)),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch made'\ntR.",
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}
"""Malformed files that every reader must refuse."""

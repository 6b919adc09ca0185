"""Write the files of a run directory: atomically, as JSON or CSV."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEMPORARY = ".tmp"
"""Suffix of files that are still being written."""


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write `content` to `path` so that readers see the old file or the new one, never a part.

    The content is written to a temporary file in the same directory, flushed to disk (fsync) and
    renamed (os.replace). The directory is created if it is missing.

    Raises:
        OSError: writing failed; `path` is unchanged and no temporary file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = temporary_beside(path)
    try:
        with naming(path):
            write_through(temporary, data)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_through(path: Path, data: bytes) -> None:
    """Write a new file and flush it to disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def temporary_beside(path: Path) -> Path:
    """Return the name of a new hidden file in the same directory, to be renamed to `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that is raised in this block."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot be written: {reason}", str(path)) from error


def remove_temporaries(directory: Path) -> None:
    """Remove temporary files of killed processes; no other process may be writing here."""
    for path in directory.glob(f".*{TEMPORARY}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, atomically; see `to_json` for the format."""
    write_atomically(path, to_json(value))


def to_json(value: Any) -> str:
    """Return `value` as indented JSON; keys keep their order.

    Arrays become lists, and NumPy scalars become numbers. Numbers that are not finite become null,
    since JSON has no NaN and the record of a diverged run must still parse.
    """
    return json.dumps(json_value(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def json_value(value: Any) -> Any:
    """Return `value` in JSON types: dict, list, str, int, finite float, bool, None."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return json_value(value.tolist())
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value of nested mappings; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def matrix_to_csv(matrix: np.ndarray) -> str:
    """Return an accuracy matrix as CSV.

    Args:
        matrix: (T+1, T) float; row 0 = untrained, NaN = not measured, written as an empty cell.
    """
    lines = [",".join(["after_task", *(f"task_{j}" for j in range(1, matrix.shape[1] + 1))])]
    for task, row in enumerate(matrix.tolist()):
        lines.append(",".join([str(task), *("" if math.isnan(v) else repr(v) for v in row)]))
    return "\n".join(lines) + "\n"


def matrix_from_csv(text: str) -> np.ndarray:
    """Return the (T+1, T) float64 matrix in a CSV text of `matrix_to_csv`."""
    rows = [line.split(",")[1:] for line in text.splitlines()[1:]]
    return np.array([[float(v) if v else math.nan for v in row] for row in rows])


def sync_directory(directory: Path) -> None:
    """Flush a rename in this directory to disk, on file systems that support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Files of a run directory: written whole or not at all, in formats that any tool reads."""

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
"""How the names of files end that are being written."""


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Replace `path` by `content` so that a reader sees the old file or the new one, never a part.

    The content goes to a temporary file in the same directory, reaches the disk (fsync) and then
    takes the name (os.replace); the directory is made if missing.

    Raises:
        OSError: nothing was replaced, and no temporary file is left.
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
    """Write a new file, all of which is on the disk afterwards."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the same directory, for what is to take the name `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError of this block: a disk that is full does not say what for."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot be written: {reason}", str(path)) from error


def remove_temporaries(directory: Path) -> None:
    """Remove what writers that were killed left in a directory that nobody else writes to."""
    for path in directory.glob(f".*{TEMPORARY}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, atomically; see `to_json` for the form."""
    write_atomically(path, to_json(value))


def to_json(value: Any) -> str:
    """Return `value` as indented JSON with its keys in the order given.

    Arrays become lists and NumPy scalars numbers. A number that is not finite becomes null: JSON
    has no NaN, and a parser must not choke on a run that diverged.
    """
    return json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """Return `value` as what JSON can hold: dict, list, str, int, finite float, bool, None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
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


def percent(fraction: float | None, *, missing: str = "-") -> str:
    """Return a fraction in percent with one decimal, never -0.0; `missing` for None."""
    return missing if fraction is None else f"{round(100 * fraction, 1) + 0.0:.1f} %"


def matrix_to_csv(matrix: np.ndarray) -> str:
    """Return an accuracy matrix as CSV.

    Args:
        matrix: (T+1, T) float, row 0 = untrained, NaN = not measured (an empty cell).
    """
    lines = [",".join(["after_task", *(f"task_{j}" for j in range(1, matrix.shape[1] + 1))])]
    for task, row in enumerate(matrix.tolist()):
        lines.append(",".join([str(task), *("" if math.isnan(v) else repr(v) for v in row)]))
    return "\n".join(lines) + "\n"


def matrix_from_csv(text: str) -> np.ndarray:
    """Return the (T+1, T) float64 matrix that `matrix_to_csv` wrote."""
    rows = [line.split(",")[1:] for line in text.splitlines()[1:]]
    return np.array([[float(v) if v else math.nan for v in row] for row in rows])


def sync_directory(directory: Path) -> None:
    """Make a rename durable; file systems that can't sync a directory are let be."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

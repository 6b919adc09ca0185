"""The rows of reproductions/: what each file expects, its control, and a fingerprint of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from seqrun.evaluation.verdict import KEY, Expected

FOLDER = "reproductions"
NAIVE = "naive"
"""As a control: this algorithm in place of the row's, without the row's keys of `algo`."""


@dataclass(frozen=True)
class Row:
    """A published number to reproduce, or the control of one.

    Attributes:
        name: <paper>/<row>; of a control the overrides follow.
        expected: what was published.
        protocol: fingerprint of what the row's file and those that it takes in say, besides
            `expected` and the seeds.
        overrides: that make a control of the row.
        control: this method at strength 0; None if it is that itself. With overrides it is run
            beside its row, else it is a row.
    """

    name: str
    expected: Expected
    protocol: str = ""
    overrides: tuple[str, ...] = ()
    control: Row | None = None

    @property
    def file(self) -> str:
        """<paper>/<row>, without overrides."""
        return self.name.split()[0]


def rows_of(folder: Path) -> list[Row]:
    """Return every row below reproductions/, the fastest first."""
    found = []
    for path in sorted(folder.glob("*/*.yaml")):
        node = _content(path).get(KEY)
        if node is not None:  # otherwise the file is a protocol, without a number
            name = f"{path.parent.name}/{path.stem}"
            row = Row(name, Expected.of(node), protocol_of(folder, name))
            found.append(replace(row, control=_control_of(row, folder)))
    return sorted(found, key=lambda row: row.expected.minutes or 0.0)


def _control_of(row: Row, folder: Path) -> Row | None:
    """Return a row's method at strength 0."""
    control = row.expected.control
    if control is None:
        return None
    if isinstance(control, str) and "/" in control:
        return replace(row, name=control)
    if control == NAIVE:
        keys = [key for node in _files(folder, row.name) for key in node.get("algo", {})]
        control = [f"algo={NAIVE}", *(f"~algo.{key}" for key in dict.fromkeys(keys))]
    return replace(row, name=" ".join((row.name, *control)), overrides=tuple(control))


def protocol_of(folder: Path, name: str) -> str:
    """Return a fingerprint of what a file says, with all that it takes in.

    Without `expected`, and without `seed`: more seeds measure the same row better.
    """
    protocol = [
        {key: value for key, value in node.items() if key not in (KEY, "seed")}
        for node in _files(folder, name)
    ]
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def _files(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the content of a file and of all that it takes in."""
    waiting = [name]
    while waiting:
        node = _content(folder / f"{waiting.pop()}.yaml")
        yield node
        entries = [entry for entry in node.get("defaults", []) if isinstance(entry, str)]
        files = [entry.partition("@")[0] for entry in entries if entry.startswith(f"/{FOLDER}/")]
        waiting += [file.removeprefix(f"/{FOLDER}/") for file in files]


def _content(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))

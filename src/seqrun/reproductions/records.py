"""What `make reproduce` measured: reproductions/results.json, and the page written from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from seqrun.checks import ConfigError
from seqrun.config.targets import BACKENDS
from seqrun.evaluation.metrics import published_metrics
from seqrun.evaluation.text import metric_label, percent
from seqrun.evaluation.verdict import KEY, VERDICTS, Expected, compare, judge
from seqrun.files import write_atomically, write_json
from seqrun.records.progress import PHASES
from seqrun.records.results import Results

FOLDER = "reproductions"
RECORDS = "results.json"
PAGE = "RESULTS.md"
HEAD = """\
# Reproductions: what was measured

Written by `make reproduce` from results.json; how a verdict comes about, and what is known of each
row that is not reproduced, is in docs/reproductions.md. Numbers are percentages: mean ± the
published standard deviation, mean ± half the 95 % interval over seeds. *Recalled* numbers were not
read again in the paper or its code, so that a miss says nothing about them. Seconds (torch, jax)
are the sum over seeds, each on one core, beside whatever else the machine did.
"""


@dataclass(frozen=True)
class Row:
    """A published number to reproduce.

    Attributes:
        name: <paper>/<row>.
        expected: what was published.
        protocol: fingerprint of what the row's file and those that it takes in say, besides
            `expected`.
    """

    name: str
    expected: Expected
    protocol: str = ""


def rows_of(folder: Path) -> list[Row]:
    """Return every row below reproductions/, those that take least time first."""
    found = []
    for path in sorted(folder.glob("*/*.yaml")):
        node = _content(path).get(KEY)
        if node is not None:  # else it is a protocol, without a number of its own
            name = f"{path.parent.name}/{path.stem}"
            found.append(Row(name, Expected.of(node), protocol_of(folder, name)))
    return sorted(found, key=lambda row: row.expected.minutes or 0.0)


def protocol_of(folder: Path, name: str) -> str:
    """Return a fingerprint of what a file says, besides `expected`, with all that it takes in."""
    said = []
    waiting = [name]
    while waiting:
        node = _content(folder / f"{waiting.pop()}.yaml")
        node.pop(KEY, None)
        said.append(node)
        entries = [entry for entry in node.get("defaults", []) if isinstance(entry, str)]
        files = [entry.partition("@")[0] for entry in entries if entry.startswith(f"/{FOLDER}/")]
        waiting += [file.removeprefix(f"/{FOLDER}/") for file in files]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def _content(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class Measured(msgspec.Struct):
    """What RESULTS.md tells of a metric."""

    mean: float | None
    half_width: float | None


class Record(msgspec.Struct):
    """What it tells of a row on a backend; a record has more."""

    metrics: dict[str, Measured]
    seeds: list[int]
    seconds: float
    commit: str | None


class Records:
    """What was measured: <row> -> <backend> -> record, kept in results.json and RESULTS.md.

    Raises:
        ConfigError: results.json is there and no such file.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is there."""
        self.folder = folder
        self.content: dict[str, dict[str, Any]] = {}
        path = folder / RECORDS
        if path.exists():
            try:
                self.content = msgspec.json.decode(path.read_bytes())
                msgspec.convert(self.content, dict[str, dict[str, Record]])
            except (ValueError, RecursionError) as error:
                told = f"{FOLDER}/{RECORDS}: is no record of reproductions ({error})"
                raise ConfigError(f"{told}: restore it, or move it away") from None

    def has(self, row: Row, backend: str, config_hash: str) -> bool:
        """Return whether this very experiment was measured, in all that the row expects."""
        found = self.content.get(row.name, {}).get(backend)
        return (
            found is not None
            and found.get("config_hash") == config_hash
            and row.expected.metrics.keys() <= found["metrics"].keys()
        )

    def add(self, row: Row, backend: str, results: Results) -> str:
        """Put in a finished run, write the files and return the row's verdict.

        Raises:
            RecordError: the run's record is not whole.
        """
        verdict = judge(row.expected, results.runs, measured_on=results.measured_on)
        matrices = [(r.accuracy_matrix, r.accuracy_matrix_task_aware) for r in results.runs]
        values = [published_metrics(*pair) for pair in matrices]
        timing = [run.timing for run in results.runs]
        record = {
            "metrics": {
                name: {key: found[key] for key in ("mean", "std", "half_width", "seeds")}
                for name, found in verdict["metrics"].items()
            },
            "values": {name: [run[name] for run in values] for name in verdict["metrics"]},
            "seeds": list(results.seeds),
            "seconds": round(sum(t.get(phase) or 0.0 for t in timing for phase in PHASES), 1),
            "commit": results.environment.get("git_commit"),
            "versions": {k: results.environment.get(k) for k in ("seqrun", backend, "numpy")},
            "config_hash": results.config_hash,
            "protocol": row.protocol,
        }
        self.content.setdefault(row.name, {})[backend] = record
        ordered = {name: self.content[name] for name in sorted(self.content)}
        write_json(self.folder / RECORDS, ordered)
        self.write_page()
        return verdict["verdict"]

    def write_page(self) -> None:
        """Write RESULTS.md."""
        rows = sorted(rows_of(self.folder), key=lambda row: row.name)
        write_atomically(self.folder / PAGE, results_page(rows, self.content))


Content = Mapping[str, Mapping[str, Any]]


def results_page(rows: Sequence[Row], content: Content) -> str:
    """Return RESULTS.md: per paper a table, per row and metric a line.

    Verdicts are by what the rows' files expect now.
    """
    lines = [HEAD, *_counts(rows, content), "", *_agreement(rows, content)]
    paper = ""
    for row in rows:
        folder, name = row.name.split("/")
        if folder != paper:
            paper = folder
            of_folder = (r.expected.paper for r in rows if r.name.startswith(f"{folder}/"))
            lines += ["", f"## {folder}", "", "; ".join(dict.fromkeys(of_folder)), ""]
            heads = "row metric published torch jax seeds verdict s commit".split()
            lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        lines += _lines(name, row, content.get(row.name, {}))
    return "\n".join(lines) + "\n"


def judged(row: Row, measured: Mapping[str, Any], backend: str, metric: str) -> dict[str, Any]:
    """Return what a backend measured of a metric and its verdict; {} = nothing."""
    found = measured.get(backend, {}).get("metrics", {}).get(metric)
    if found is None:
        return {}
    return compare(row.expected.metrics[metric], found["mean"], found["half_width"])


def _counts(rows: Sequence[Row], content: Content) -> Iterator[str]:
    """Yield how many numbers have which verdict on each backend: rows' first, then the others."""
    yield "| numbers | backend | " + " | ".join(VERDICTS) + " | not run |"
    yield "| --- " * (len(VERDICTS) + 3) + "|"
    for status, label in (("confirmed", "confirmed"), ("unconfirmed", "recalled")):
        for first in (True, False):
            chosen = [
                (row, metric)
                for row in rows
                if row.expected.status == status
                for metric in list(row.expected.metrics)[slice(1) if first else slice(1, None)]
            ]
            if not chosen:
                continue
            for backend in BACKENDS:
                found = [
                    judged(row, content.get(row.name, {}), backend, metric).get("verdict")
                    for row, metric in chosen
                ]
                cells = " | ".join(str(found.count(kind)) for kind in (*VERDICTS, None))
                what = "average accuracy" if first else "other metrics"
                yield f"| {label}, {what} | {backend} | {cells} |"


def _agreement(rows: Sequence[Row], content: Content) -> Iterator[str]:
    """Yield where the backends' intervals overlap, and where they do not."""
    compared, apart = 0, []
    for row in rows:
        measured = content.get(row.name, {})
        for metric in row.expected.metrics:
            pair = [judged(row, measured, backend, metric) for backend in BACKENDS]
            means = [found["mean"] for found in pair if found.get("mean") is not None]
            widths = [found["half_width"] for found in pair if found.get("half_width") is not None]
            if len(means) < 2 or len(widths) < 2:
                continue  # not run, undefined, or without an interval
            compared += 1
            if abs(means[0] - means[1]) > sum(widths):
                apart.append(f"{row.name} ({metric_label(metric)})")
    yield f"Torch's and JAX's intervals overlap in {compared - len(apart)} of {compared} numbers"
    yield f"measured on both{'; not in ' if apart else ''}{', '.join(apart)}."


def _lines(name: str, row: Row, measured: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row's lines of the table, the first metric's first."""
    label = "" if row.expected.status == "confirmed" else " *recalled*"
    records = [measured[backend] for backend in BACKENDS if backend in measured]
    for place, (metric, number) in enumerate(row.expected.metrics.items()):
        cells, verdicts = [], []
        for backend in BACKENDS:
            found = judged(row, measured, backend, metric)
            spread = percent(found["mean"], found["half_width"], digits=2) if found else "not run"
            cells.append(spread)
            if found:
                old = measured[backend].get("protocol") != row.protocol
                verdicts.append(found["verdict"] + (" (of an earlier protocol)" if old else ""))
        published = percent(number.mean, number.std, digits=2)
        told = ["", "", ""]
        if place == 0:
            told[0] = _each(len(record["seeds"]) for record in records)
            told[1] = ", ".join(f"{record['seconds']:.0f}" for record in records)
            told[2] = _each((record["commit"] or "")[:8] for record in records)
        yield (
            f"| {name if place == 0 else ''} | {metric_label(metric)} "
            f"| {published}{label} | {' | '.join(cells)} | {told[0]} "
            f"| {_each(verdicts)} | {told[1]} | {told[2]} |"
        )


def _each(values: Iterator[Any] | Sequence[Any]) -> str:
    """Return what the backends say, in their order; once if they say the same."""
    return ", ".join(dict.fromkeys(map(str, values)))

"""The results of `make reproduce`: reproductions/results.json and the page written from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import yaml

from seqrun.checks import BACKENDS, ConfigError
from seqrun.evaluation.metrics import half_width, summarise
from seqrun.evaluation.text import metric_label, percent
from seqrun.evaluation.verdict import (
    FEWEST_SEEDS,
    KEY,
    VERDICTS,
    Expected,
    Sample,
    compare,
    compare_all,
    metrics_of,
    seeds_needed,
    tells_apart,
    worst,
)
from seqrun.files import write_atomically, write_json
from seqrun.records.progress import PHASES
from seqrun.records.results import Results

FOLDER = "reproductions"
RECORDS = "results.json"
PAGE = "RESULTS.md"
NAIVE = "naive"
"""As a control: this algorithm in place of the row's, without the row's keys of `algo`."""
HEAD = """\
# Reproductions: what was measured

Written by `make reproduce` from results.json; how a verdict comes about, and what is known of each
row that is not reproduced, is in docs/reproductions.md. Numbers are percentages: mean ± the
published standard deviation (° none is published, and ours stands for it), mean ± half the 95 %
interval over seeds, difference ± half its own. *Recalled* numbers were not read again in the paper
or its code, so that a miss says nothing about them. A row tells if the same training without the
method (its control) would lie outside the band; "no" means that a method that does nothing might
be reproduced too. Seconds (torch, jax) are the sum over seeds, each on one core, beside whatever
else the machine did.
"""


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
    said = [
        {key: value for key, value in node.items() if key not in (KEY, "seed")}
        for node in _files(folder, name)
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


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


class Measured(msgspec.Struct):
    """The part of a metric's record that RESULTS.md shows."""

    mean: float | None
    std: float | None
    half_width: float | None
    seeds: int


class Record(msgspec.Struct):
    """The part that RESULTS.md shows of the record of a row on a backend."""

    metrics: dict[str, Measured]
    seeds: list[int]
    seconds: float
    commit: str | None
    values: dict[str, list[float | None]] = {}
    outdated: bool = False


Metrics = Mapping[str, float | None]
HashOf = Callable[[Sequence[int]], str]
"""The config hash of a row on a backend with these seeds, as the program is now."""


class Records:
    """The measurements: <row> -> <backend> -> record, stored in results.json and RESULTS.md.

    Raises:
        ConfigError: results.json exists, but is not a record of reproductions.
    """

    def __init__(self, folder: Path) -> None:
        """Read results.json if it exists."""
        self.folder = folder
        self.content: dict[str, dict[str, Any]] = {}
        path = folder / RECORDS
        if path.exists():
            try:
                self.content = msgspec.json.decode(path.read_bytes())
                msgspec.convert(self.content, dict[str, dict[str, Record]])
            except (ValueError, RecursionError) as error:
                told = f"{FOLDER}/{RECORDS}: is not a record of reproductions ({error})"
                raise ConfigError(f"{told}: restore it, or move it away") from None

    def kept(self, row: Row, backend: str, hash_of: HashOf) -> dict[int, Metrics]:
        """Return what was measured of a row: seed -> metrics.

        Nothing, if it was another experiment, or one with other `numerics`, both of which are in
        its hash; the record is then marked as outdated. Nothing either, if the row expects more.
        """
        found = self.content.get(row.name, {}).get(backend)
        if found is None:
            return {}
        found.pop("outdated", None)
        if found.get("config_hash") != hash_of(found["seeds"]):
            found["outdated"] = True
            return {}
        if not row.expected.metrics.keys() <= found.get("values", {}).keys():
            return {}
        runs = [dict(zip(found["values"], run, strict=True)) for run in _by_seed(found["values"])]
        return dict(zip(found["seeds"], runs, strict=True))

    def add(
        self,
        row: Row,
        backend: str,
        finished: Sequence[Results],
        kept: Mapping[int, Metrics],
        hash_of: HashOf,
    ) -> str:
        """Put in what was measured of a row, write the files and return its verdict.

        Args:
            row, backend: what.
            finished: its runs, at least one.
            kept: seeds that were measured before.
            hash_of: the row's config hash.
        """
        runs = dict(kept)
        for results in finished:
            runs |= metrics_by_seed(results)
        seeds = sorted(runs)
        compared = compare_all(row.expected, [runs[seed] for seed in seeds])
        timing = [run.timing for results in finished for run in results.runs]
        seconds = sum(each.get(phase) or 0.0 for each in timing for phase in PHASES)
        last = finished[-1]
        record = {
            "metrics": {
                name: {key: found[key] for key in ("mean", "std", "half_width", "seeds")}
                for name, found in compared.items()
            },
            "values": {name: [runs[seed][name] for seed in seeds] for name in compared},
            "seeds": seeds,
            "seconds": round(seconds, 1),
            "commit": last.environment.get("git_commit"),
            "versions": {k: last.environment.get(k) for k in ("seqrun", backend, "numpy")},
            "config_hash": hash_of(seeds),
            "protocol": row.protocol,
        }
        if last.numerics:
            record["numerics"] = dict(last.numerics)
        if kept:
            before = self.content[row.name][backend]
            record["seconds"] = round(seconds + before["seconds"], 1)
            told = {key: before[key] for key in ("seeds", "commit", "versions")}
            record["earlier"] = [*before.get("earlier", []), told]
        self.content.setdefault(row.name, {})[backend] = record
        self.write()
        return worst(found["verdict"] for found in compared.values())

    @property
    def has_outdated(self) -> bool:
        """Whether a record is marked as outdated."""
        return any(found.get("outdated") for row in self.content.values() for found in row.values())

    def write(self) -> None:
        """Write results.json and RESULTS.md."""
        ordered = {name: self.content[name] for name in sorted(self.content)}
        write_json(self.folder / RECORDS, ordered)
        self.write_page()

    def write_page(self) -> None:
        """Write RESULTS.md."""
        rows = sorted(rows_of(self.folder), key=lambda row: row.name)
        write_atomically(self.folder / PAGE, results_page(rows, self.content))


def metrics_by_seed(results: Results) -> dict[int, Metrics]:
    """Return seed -> metrics of a finished run."""
    return {run.seed: metrics_of(run) for run in results.runs}


def next_seeds(expected: Expected, runs: Mapping[int, Metrics]) -> list[int]:
    """Return the seeds that a row is to be run with next; none if it is measured.

    First FEWEST_SEEDS, then at once as many more as the deviation of these asks for.
    """
    first = [seed for seed in range(FEWEST_SEEDS) if seed not in runs]
    if first:
        return first
    needed = seeds_needed(expected, [runs[seed] for seed in range(FEWEST_SEEDS)])
    return [seed for seed in range(needed) if seed not in runs]


def _by_seed(values: Mapping[str, Sequence[float | None]]) -> Iterator[tuple[float | None, ...]]:
    return zip(*values.values(), strict=True)


Content = Mapping[str, Mapping[str, Any]]
HEADS = "row metric published torch jax difference verdict tells seeds s commit".split()


def results_page(rows: Sequence[Row], content: Content) -> str:
    """Return RESULTS.md: a table for each paper, with a line for each row and metric.

    Verdicts are based on the expected numbers that are in the rows' files now.
    """
    lines = [HEAD, *_counts(rows, content), "", *_agreement(rows, content)]
    paper = ""
    for row in rows:
        folder, name = row.name.split("/")
        if folder != paper:
            paper = folder
            of_folder = (r.expected.paper for r in rows if r.name.startswith(f"{folder}/"))
            lines += ["", f"## {folder}", "", "; ".join(dict.fromkeys(of_folder)), ""]
            lines += [f"| {' | '.join(HEADS)} |", "| --- " * len(HEADS) + "|"]
        lines += _lines(name, row, content)
    return "\n".join(lines) + "\n"


def judged(row: Row, content: Content, backend: str, metric: str) -> dict[str, Any]:
    """Return what a backend measured of a metric, with verdict and power; {} = nothing."""
    ours = _sample(content, row.name, backend, metric)
    if ours is None:
        return {}
    number, num_runs = row.expected.metrics[metric], row.expected.num_seeds
    found = compare(number, num_runs, ours)
    found["half_width"] = content[row.name][backend]["metrics"][metric]["half_width"]
    control = None if row.control is None else _sample(content, row.control.name, backend, metric)
    told = None if control is None else tells_apart(number, num_runs, ours, control)
    found["tells"] = "" if row.control is None else {True: "yes", False: "no", None: "?"}[told]
    return found


def row_verdict(row: Row, content: Content, backend: str) -> str | None:
    """Return the worst verdict of a row's metrics; None = not measured, or as it was earlier."""
    found = [judged(row, content, backend, metric) for metric in row.expected.metrics]
    if not all(found) or _age(row, content, backend):
        return None
    return worst(each["verdict"] for each in found)


def _sample(content: Content, name: str, backend: str, metric: str) -> Sample | None:
    found = content.get(name, {}).get(backend, {}).get("metrics", {}).get(metric)
    return None if found is None else Sample(found["mean"], found["std"], found["seeds"])


def _age(row: Row, content: Content, backend: str) -> str:
    """Return how a record differs from the row as it is now; "" if it does not."""
    record = content[row.name][backend]
    if record.get("protocol") != row.protocol:
        return " (of an earlier protocol)"
    return " (before its numbers changed)" if record.get("outdated") else ""


def _counts(rows: Sequence[Row], content: Content) -> Iterator[str]:
    """Yield how many rows have which verdict on each backend."""
    yield "| rows | backend | " + " | ".join(VERDICTS) + " | not measured | cannot tell |"
    yield "| --- " * (len(VERDICTS) + 4) + "|"
    for status, label in (("confirmed", "confirmed"), ("unconfirmed", "recalled")):
        chosen = [row for row in rows if row.expected.status == status]
        for backend in BACKENDS if chosen else ():
            found = [row_verdict(row, content, backend) for row in chosen]
            cells = [str(found.count(kind)) for kind in (*VERDICTS, None)]
            cells.append(str(sum(not _tells(row, content, backend) for row in chosen)))
            yield f"| {label} | {backend} | {' | '.join(cells)} |"


def _tells(row: Row, content: Content, backend: str) -> bool:
    """Return False if the control might pass for the row in every metric."""
    told = [judged(row, content, backend, metric).get("tells") for metric in row.expected.metrics]
    return not all(each == "no" for each in told)


def _agreement(rows: Sequence[Row], content: Content) -> Iterator[str]:
    """Yield where the backends differ: the paired difference over common seeds is not 0."""
    compared, apart = 0, []
    for row in rows:
        torch, jax = (content.get(row.name, {}).get(backend) for backend in ("torch", "jax"))
        if torch is None or jax is None:
            continue
        for metric in row.expected.metrics:
            difference = _paired(torch, jax, metric)
            half = half_width(difference)
            if half is None:
                continue  # undefined, or fewer than two common seeds
            compared += 1
            if abs(difference["mean"]) > half:
                shown = percent(difference["mean"], half, digits=2, signed=True)
                apart.append(f"{row.name} ({metric_label(metric)}: {shown})")
    yield "JAX minus PyTorch, paired over common seeds, has a 95 % interval that holds 0 in"
    yield f"{compared - len(apart)} of {compared} numbers measured on both, where chance alone"
    yield f"leaves {0.95 * compared:.0f}{'; not in: ' if apart else ''}{'; '.join(apart)}."


def _paired(torch: Mapping[str, Any], jax: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return the summary of JAX minus PyTorch over the seeds that both have."""
    first, second = (
        dict(zip(record["seeds"], record.get("values", {}).get(metric, ()), strict=False))
        for record in (torch, jax)
    )
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    defined = [b - a for a, b in pairs if a is not None and b is not None]
    return summarise([{metric: each} for each in defined] or [{metric: None}])[metric]


def _lines(name: str, row: Row, content: Content) -> Iterator[str]:
    """Yield a row's lines of the table, one for each metric in order."""
    measured = content.get(row.name, {})
    label = "" if row.expected.status == "confirmed" else " *recalled*"
    records = [measured[backend] for backend in BACKENDS if backend in measured]
    for place, (metric, number) in enumerate(row.expected.metrics.items()):
        means, differences, verdicts, tells = [], [], [], []
        for backend in BACKENDS:
            found = judged(row, content, backend, metric)
            if not found:
                means.append("not run")
                continue
            means.append(percent(found["mean"], found["half_width"], digits=2))
            half = found["difference_half_width"]
            spread = percent(found["difference"], half, digits=2, signed=True)
            differences.append(f"{spread} in ± {percent(found['band'], digits=2)}")
            verdicts.append(found["verdict"] + _asked(found) + _age(row, content, backend))
            tells.append(found["tells"])
        published = percent(number.mean, number.std, digits=2)
        published += "°" if number.deviation_of == "ours" else ""
        told = ["", "", ""]
        if place == 0:
            told[0] = _each(len(record["seeds"]) for record in records)
            told[1] = ", ".join(f"{record['seconds']:.0f}" for record in records)
            told[2] = _each((record["commit"] or "")[:8] for record in records)
        cells = [name if place == 0 else "", metric_label(metric), published + label, *means]
        cells += [_each(differences), _each(verdicts), _each(tells), *told]
        yield f"| {' | '.join(cells)} |"


def _asked(found: Mapping[str, Any]) -> str:
    """Return how many seeds would decide, in brackets."""
    seeds = found["seeds_that_decide"]
    return (
        ""
        if seeds is None
        else f" ({'no number of' if seeds == 'none' else seeds} seeds would decide)"
    )


def _each(values: Iterator[Any] | Sequence[Any]) -> str:
    """Return the backends' values, joined in order; equal values appear once."""
    return ", ".join(dict.fromkeys(map(str, values)))

"""The measurements of `make reproduce`: reproductions/results.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from seqrun.checks import ConfigError
from seqrun.evaluation.verdict import (
    FEWEST_SEEDS,
    Expected,
    compare_all,
    metrics_of,
    seeds_needed,
    worst,
)
from seqrun.files import write_atomically, write_json
from seqrun.records.progress import PHASES
from seqrun.records.results import Results
from seqrun.reproductions.page import results_page
from seqrun.reproductions.rows import FOLDER, Row, rows_of

RECORDS = "results.json"
PAGE = "RESULTS.md"


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
                problem = f"{FOLDER}/{RECORDS}: is not a record of reproductions ({error})"
                raise ConfigError(f"{problem}: restore it, or move it away") from None

    def measured(self, row: Row, backend: str, hash_of: HashOf) -> dict[int, Metrics]:
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
        measured: Mapping[int, Metrics],
        hash_of: HashOf,
    ) -> str:
        """Put in what was measured of a row, write the files and return its verdict.

        Args:
            row, backend: what.
            finished: its runs, at least one.
            measured: seeds that were measured before.
            hash_of: the row's config hash.
        """
        runs = dict(measured)
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
        if measured:
            before = self.content[row.name][backend]
            record["seconds"] = round(seconds + before["seconds"], 1)
            earlier = {key: before[key] for key in ("seeds", "commit", "versions")}
            record["earlier"] = [*before.get("earlier", []), earlier]
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

"""Run the reproductions that fit a machine, and keep what they measured: `make reproduce`.

`python -m seqrun.reproduce [--only PATTERN] [--machine cpu|gpu] [--backend torch|jax] [--again]`
runs every row of reproductions/ that is meant for the machine, on both backends: on a CPU as many
rows at once as there are cores, each with its seeds one after the other. A row that
reproductions/results.json holds already, by its config hash, is left out, and a run that was
stopped continues. After every row results.json and RESULTS.md are written anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from seqrun import preflight
from seqrun.cores import num_cores
from seqrun.files import write_atomically, write_json
from seqrun.results import Results
from seqrun.verdict import KEY, MACHINES, Expected

BACKENDS = ("torch", "jax")
ROOT = Path(__file__).parents[2]
FOLDER = "reproductions"
RECORDS = "results.json"
PAGE = "RESULTS.md"
HEAD = """\
# Reproductions: what was measured

Written by `make reproduce` from results.json; how a verdict comes about, and what is known of each
row that is not reproduced, is in docs/reproductions.md. Numbers are percentages: mean ± the
published standard deviation, mean ± half the 95 % interval over seeds. *Recalled* numbers were not
read again in the paper or its code, so that a miss says nothing about them. Seconds (torch, jax)
are the sum over seeds, each on one core beside another.
"""


@dataclass(frozen=True)
class Row:
    """A published number to reproduce.

    Attributes:
        name: <paper>/<row>.
        expected: what was published.
    """

    name: str
    expected: Expected


def rows_of(folder: Path) -> list[Row]:
    """Return every row below reproductions/, those that take least time first."""
    found = []
    for path in sorted(folder.glob("*/*.yaml")):
        node = yaml.safe_load(path.read_text(encoding="utf-8")).get(KEY)
        if node is not None:  # else it is a protocol, without a number of its own
            found.append(Row(f"{path.parent.name}/{path.stem}", Expected.of(node)))
    return sorted(found, key=lambda row: row.expected.minutes or 0.0)


class Records:
    """What was measured: <row> -> <backend> -> record, kept in results.json and RESULTS.md."""

    def __init__(self, folder: Path) -> None:
        """Read what is there."""
        self.folder = folder
        path = folder / RECORDS
        self.content: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.content = json.loads(path.read_text(encoding="utf-8"))
        self._lock = threading.Lock()

    def has(self, row: str, backend: str, config_hash: str) -> bool:
        """Return whether this very experiment was measured."""
        return self.content.get(row, {}).get(backend, {}).get("config_hash") == config_hash

    def add(self, row: str, backend: str, results: Results) -> None:
        """Put in a finished run and write the files."""
        verdict = results.verdict
        assert verdict is not None
        timing = [run.timing for run in results.runs]
        phases = ("setup_seconds", "compile_seconds", "train_seconds", "eval_seconds")
        record = {
            "verdict": verdict["verdict"],
            "metrics": verdict["metrics"],
            "seeds": list(results.seeds),
            "seconds": round(sum(t.get(phase) or 0.0 for t in timing for phase in phases), 1),
            "commit": results.environment.get("git_commit"),
            "versions": {k: results.environment.get(k) for k in ("seqrun", backend, "numpy")},
            "config_hash": results.config_hash,
        }
        with self._lock:
            self.content.setdefault(row, {})[backend] = record
            ordered = {name: self.content[name] for name in sorted(self.content)}
            write_json(self.folder / RECORDS, ordered)
            self.write_page()

    def write_page(self) -> None:
        """Write RESULTS.md."""
        rows = sorted(rows_of(self.folder), key=lambda row: row.name)
        write_atomically(self.folder / PAGE, page(rows, self.content))


def page(rows: Sequence[Row], content: Mapping[str, Mapping[str, Any]]) -> str:
    """Return RESULTS.md: per paper a table, per row and metric a line."""
    lines = [HEAD, *_counts(rows, content), "", *_agreement(content)]
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


def _counts(rows: Sequence[Row], content: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield how many rows have which verdict, on each backend."""
    yield "| numbers | backend | reproduced | above | below | inconclusive | not run |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for status in ("confirmed", "unconfirmed"):
        chosen = [row.name for row in rows if row.expected.status == status]
        for backend in BACKENDS:
            found = [content.get(name, {}).get(backend, {}).get("verdict") for name in chosen]
            kinds = ("reproduced", "above", "below", "inconclusive", None)
            label = status if status == "confirmed" else "recalled"
            cells = " | ".join(str(found.count(kind)) for kind in kinds)
            yield f"| {label} | {backend} | {cells} |"


def _agreement(content: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield where the backends' intervals overlap, and where they do not."""
    compared, apart = 0, []
    for name, measured in content.items():
        if len(measured) < len(BACKENDS):
            continue
        torch, jax = (measured[backend]["metrics"] for backend in BACKENDS)
        for metric in (metric for metric in torch if metric in jax):
            pair = [(found["mean"], found["half_width"]) for found in (torch[metric], jax[metric])]
            if any(value is None for found in pair for value in found):
                continue  # undefined, or without an interval
            compared += 1
            if abs(pair[0][0] - pair[1][0]) > pair[0][1] + pair[1][1]:
                apart.append(f"{name} ({metric.replace('_', ' ')})")
    yield f"Torch's and JAX's intervals overlap in {compared - len(apart)} of {compared} numbers"
    yield f"measured on both{'; not in ' if apart else ''}{', '.join(apart)}."


def _lines(name: str, row: Row, measured: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row's lines of the table, the first metric's first."""
    label = "" if row.expected.status == "confirmed" else " *recalled*"
    for place, (metric, number) in enumerate(row.expected.metrics.items()):
        published = _percent(number.mean, number.std) + label
        cells, verdicts = [], []
        for backend in BACKENDS:
            found = measured.get(backend, {}).get("metrics", {}).get(metric)
            if found is None:
                cells.append("not run")
                continue
            cells.append(_percent(found["mean"], found["half_width"]))
            verdicts.append(found["verdict"])
        both = verdicts[0] if len(set(verdicts)) == 1 else ", ".join(verdicts)
        told = ["", "", ""]
        if place == 0 and measured:
            told[0] = ", ".join(sorted({str(len(r["seeds"])) for r in measured.values()}))
            told[1] = ", ".join(f"{r['seconds']:.0f}" for r in _in_order(measured))
            commits = {(record["commit"] or "")[:8] for record in measured.values()}
            told[2] = ", ".join(sorted(commits))
        seeds, seconds, commit = told
        shown = name if place == 0 else ""
        words = metric.removesuffix("_task_aware").replace("_", " ")
        words += ", task given" if metric.endswith("_task_aware") else ""
        yield (
            f"| {shown} | {words} | {published} | {cells[0]} | {cells[1]} | {seeds} | {both} "
            f"| {seconds} | {commit} |"
        )


def _in_order(measured: Mapping[str, Any]) -> list[Any]:
    return [measured[backend] for backend in BACKENDS if backend in measured]


def _percent(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "undefined"
    return f"{100 * mean:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def run_row(
    row: Row, backend: str, directory: Path, log: Path, strategy: str = "auto"
) -> Results | None:
    """Run a row in a process of its own and return its record; None if it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "run.py"), f"reproductions={row.name}"]
    command += [f"backend={backend}", f"hydra.run.dir={directory}", f"seeds_strategy={strategy}"]
    with open(log, "w", encoding="utf-8") as output:
        code = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code != 0:
        return None
    return Results.read(directory)


def main(argv: Sequence[str]) -> int:
    """Run what is asked for; return 0, or 1 if a row failed to run, whatever its verdict."""
    parser = argparse.ArgumentParser("make reproduce", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="rows, such as 'hsu2018/*'")
    parser.add_argument("--machine", default="cpu", choices=MACHINES, help="rows meant for it")
    parser.add_argument("--backend", choices=BACKENDS, help="one alone")
    parser.add_argument("--jobs", type=int, help="rows at once; default: one per core, 1 on a GPU")
    parser.add_argument("--again", action="store_true", help="measured ones too")
    parser.add_argument("--page", action="store_true", help="write RESULTS.md and run nothing")
    args = parser.parse_args(argv)
    folder = ROOT / FOLDER
    records = Records(folder)
    if args.page:
        records.write_page()
        return 0
    backends = [args.backend] if args.backend else BACKENDS
    wanted = [
        (row, backend)
        for row in rows_of(folder)
        for backend in backends
        if fnmatch(row.name, args.only) and row.expected.machine == args.machine
    ]
    if not wanted:
        sys.stderr.write(f"error: --only={args.only}: matches no row for {args.machine}\n")
        return 2
    left = []
    for row, backend in wanted:
        (job,) = preflight.check([f"reproductions={row.name}", f"backend={backend}"], ROOT / "conf")
        if args.again or not records.has(row.name, backend, job.hash):
            # Named after the experiment, so that a changed protocol starts anew.
            left.append((row, backend, Path("runs", FOLDER, row.name, f"{backend}-{job.hash}")))
    sys.stdout.write(f"{len(wanted) - len(left)} of {len(wanted)} measured already\n")
    jobs = args.jobs or (num_cores() if args.machine == "cpu" else 1)
    jobs = max(1, min(jobs, len(left)))
    # One row after the other leaves cores idle at each row's end; one alone shares out its seeds.
    strategy = "auto" if jobs == 1 else "sequential"
    failed = 0
    started, done = time.perf_counter(), 0

    def measure(row: Row, backend: str, place: Path) -> tuple[Row, str, Results | None, Path]:
        log = place.with_suffix(".log")
        return row, backend, run_row(row, backend, place, log, strategy), log

    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(measure, *chosen) for chosen in left]):
            row, backend, results, log = future.result()
            done += 1
            told = f"failed, see {log}"
            if results is not None and results.verdict is not None:
                records.add(row.name, backend, results)
                told = results.verdict["verdict"]
            failed += results is None
            seconds = time.perf_counter() - started
            sys.stdout.write(f"{done}/{len(left)} {row.name} {backend}: {told} ({seconds:.0f} s)\n")
            sys.stdout.flush()
    sys.stdout.write(f"{FOLDER}/{PAGE} is written; {failed} failed to run\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Tables of a report, and how they are written as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrun.evaluation.metrics import half_width
from seqrun.evaluation.text import metric_label, percent
from seqrun.report.differences import (
    ABSENT,
    labels,
    short_names,
    varying_keys,
    varying_names,
    yaml_text,
)
from seqrun.report.pairing import METRICS, Pair
from seqrun.report.records import Collection, ExperimentRuns

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {c: f"\\{c}" for c in "&%$#_{}"} | {ABSENT: "--", "<": r"\textless{}"}
SPECIAL |= {">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the text shown.
        value: the sort key; None = empty, sorted last.
        half: half the width of the interval around a number; None = no interval.
    """

    text: str
    value: float | str | None
    half: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header.

    Attributes:
        header: names of the columns.
        rows: one cell per column.
        keys: for each column, the full key if the name is short for one, else "".
    """

    header: list[str]
    rows: list[list[Cell]]
    keys: list[str]


def text(value: Any) -> Cell:
    """Return the cell of a configuration value or a name."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(yaml_text(value), float(value) if number else yaml_text(value))


def percentage(summary: Mapping[str, Any] | None, *, signed: bool = False) -> Cell:
    """Return the cell "mean ± half width of the 95 % interval", in percent."""
    if summary is None or summary["mean"] is None:
        return Cell(ABSENT, None)
    mean, half = summary["mean"], half_width(summary)
    shown = percent(mean, half, signed=signed)
    return Cell(shown, 100 * mean, None if half is None else 100 * half)


def metrics_of(experiments: Sequence[ExperimentRuns]) -> list[str]:
    """Return every metric that at least one experiment has."""
    return list(dict.fromkeys(name for e in experiments for name in e.summary))


def results_table(experiments: Sequence[ExperimentRuns]) -> Table:
    """Return one row per experiment: names, differing keys, seeds, metrics."""
    names, keys = varying_names(experiments), varying_keys(experiments)
    metrics = metrics_of(experiments)
    short = short_names(keys)
    rows = []
    for experiment in experiments:
        row = [text(experiment.names[name]) for name in names]
        config = experiment.config
        row += [text(config[key]) if key in config else Cell(ABSENT, None) for key in keys]
        row.append(text(len(experiment.runs)))
        row += [percentage(experiment.summary.get(metric)) for metric in metrics]
        rows.append(row)
    return Table(
        header=[*names, *short.values(), "seeds", *(f"{metric_label(m)} (%)" for m in metrics)],
        rows=rows,
        keys=[""] * len(names) + keys + [""] * (1 + len(metrics)),
    )


def pairs_table(pairs: Sequence[Pair], group: Sequence[ExperimentRuns]) -> Table:
    """Return one row per pair of experiments: first minus second over common seeds."""
    named = labels(group)
    rows = [
        [
            text(named[pair.first]),
            text(named[pair.second]),
            text(len(pair.seeds)),
            *(percentage(pair.differences.get(m), signed=True) for m in METRICS),
            Cell(pair.config or ABSENT, pair.config),
        ]
        for pair in pairs
    ]
    names = [f"difference of {metric_label(m)} (points)" for m in METRICS]
    header = ["first", "second", "seeds", *names]
    return Table([*header, "differ in (first | second)"], rows, [""] * 6)


def matrix_table(pairs: Sequence[Pair], group: Sequence[ExperimentRuns]) -> Table:
    """Return a square table: average accuracy of the row minus that of the column."""
    named = labels(group)
    found = {(pair.first, pair.second): pair.differences["average_accuracy"] for pair in pairs}
    rows = []
    for row in group:
        cells = [text(named[row])]
        for column in group:
            known, mirrored = found.get((row, column)), found.get((column, row))
            cells.append(percentage(known or _negated(mirrored), signed=True))
        rows.append(cells)
    header = ["minus", *(named[column] for column in group)]
    return Table(header, rows, [""] * len(header))


def _negated(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if summary is None or summary["mean"] is None:
        return None
    ci95 = summary["ci95"] and [-summary["ci95"][1], -summary["ci95"][0]]
    return {**summary, "mean": -summary["mean"], "ci95": ci95}


def unfinished_table(collection: Collection, out: Path) -> Table:
    """Return one row per run directory with unfinished seeds; paths are relative to `out`."""
    rows = [
        [
            text(entry.name),
            text(entry.status),
            text(", ".join(map(str, entry.seeds))),
            text(" ".join(entry.error.split())),
            text(os.path.relpath(entry.directory, out)),
        ]
        for entry in collection.unfinished
    ]
    return Table(["run", "status", "seeds", "error", "directory"], rows, [""] * 5)


# ---- formats


def to_csv(experiments: Sequence[ExperimentRuns], out: Path) -> str:
    """Return all experiments as CSV in full precision: fractions, not percent; empty = undefined.

    It has no times, and directories are relative to `out`, so that the same experiments give the
    same bytes.
    """
    keys, metrics = varying_keys(experiments), metrics_of(experiments)
    columns = ["algo", "benchmark", "backbone", "backend", *keys]
    columns += ["measured_on", "device", "completed_seeds", "unfinished_seeds"]
    parts = ("mean", "std", "ci95_low", "ci95_high", "n")
    columns += [f"{metric}_{part}" for metric in metrics for part in parts]
    columns.append("directories")
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    for experiment in experiments:
        row = [experiment.names[name] for name in columns[:4]]
        row += [yaml_text(experiment.config[k]) if k in experiment.config else "" for k in keys]
        row += [experiment.measured_on, experiment.device or ""]
        row.append(" ".join(map(str, experiment.runs)))
        unfinished = [seed for entry in experiment.unfinished for seed in entry.seeds]
        row.append(" ".join(map(str, unfinished)))
        for metric in metrics:
            summary = experiment.summary.get(metric, {"mean": None, "std": None, "n": 0})
            low, high = summary.get("ci95") or (None, None)
            values = (summary["mean"], summary["std"], low, high, summary["n"])
            row += ["" if value is None else repr(value) for value in values]
        places = [os.path.relpath(place, out) for place in experiment.directories.values()]
        row.append(";".join(dict.fromkeys(places)))
        writer.writerow(row)
    return written.getvalue()


def to_markdown(table: Table) -> str:
    """Return the table in Markdown, with numbers aligned right."""
    align = ["--:" if is_number(table, place) else ":--" for place in range(len(table.header))]
    lines = [[_md(name) for name in table.header], align]
    lines += [[_md(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_latex(table: Table) -> str:
    """Return the table as a booktabs tabular."""
    align = "".join("r" if is_number(table, p) else "l" for p in range(len(table.header)))
    lines = [f"\\begin{{tabular}}{{{align}}}", "\\toprule"]
    lines += [" & ".join(map(_tex, table.header)) + r" \\", "\\midrule"]
    lines += [" & ".join(_tex(cell.text) for cell in row) + r" \\" for row in table.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def is_number(table: Table, place: int) -> bool:
    """Return True if a column has only numbers and empty cells."""
    return not any(isinstance(row[place].value, str) for row in table.rows)


def _md(words: str) -> str:
    """Return text escaped for Markdown, on one line."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(words.split()))


def _tex(words: str) -> str:
    """Return text escaped for LaTeX; signed numbers and intervals are set in math mode."""
    number = re.fullmatch(r"([+-]?[\d.]+)(?: ± ([\d.]+))?", words)
    if number and ("±" in words or words[0] in "+-"):
        half = rf" \pm {number[2]}" if number[2] else ""
        return f"${number[1]}{half}$"
    return "".join(SPECIAL.get(character, character) for character in words)

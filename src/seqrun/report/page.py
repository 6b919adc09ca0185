"""The HTML page of a report: one self-contained file without external resources."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from seqrun.evaluation.text import metric_label
from seqrun.report.differences import ABSENT, labels, yaml_text
from seqrun.report.drawing import MAX_HEAT_MAPS, Drawing
from seqrun.report.pairing import MAX_ALL_PAIRS, compare_pairs, streams, titles
from seqrun.report.records import Collection, ExperimentRuns
from seqrun.report.tables import (
    Cell,
    Table,
    is_number,
    matrix_table,
    metrics_of,
    pairs_table,
    percentage,
    results_table,
    text,
    unfinished_table,
)
from seqrun.report.words import PAIRED, UNITS, counts, left_out

HERE = Path(__file__).parent


def html_page(collection: Collection, drawings: Sequence[Drawing], out: Path) -> str:
    """Return index.html with paths relative to `out`; all text from runs is escaped."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{digest}'"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Continual learning runs</title><style>{style}</style></head><body>",
        f"<h1>Continual learning runs</h1><p>{escape(counts(collection))}</p>",
        *_results(collection),
        *(_html_figure(drawing) for drawing in drawings if drawing.experiment is None),
        *_comparisons(collection),
        *_experiments(collection, drawings, out),
        *_rest(collection, out),
        f"<script>{script}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _results(collection: Collection) -> list[str]:
    if not collection.experiments:
        return []
    return [
        f"<h2>Results</h2><p>{escape(UNITS)} Click a column's name to sort by it.</p>",
        _filtered("results", results_table(collection.experiments)),
    ]


def _comparisons(collection: Collection) -> list[str]:
    parts: list[str] = []
    groups = streams(collection.experiments)
    for place, (group, title) in enumerate(zip(groups, titles(groups), strict=True)):
        pairs = compare_pairs(group)
        if not pairs:
            continue
        parts += [f"<h3>{escape(title)}</h3>"]
        if 2 < len(group) <= MAX_ALL_PAIRS:
            parts += [
                "<p>Average accuracy of the row minus that of the column. Where the interval "
                'excludes 0, the row is <span class="better">better</span> or '
                '<span class="worse">worse</span>.</p>',
                _html_table(matrix_table(pairs, group), coloured=True),
                "<h3>The same pairs, one by one</h3>",
            ]
        parts.append(_filtered(f"pairs-{place}", pairs_table(pairs, group)))
    return [f"<h2>Paired comparisons</h2><p>{escape(PAIRED)}</p>", *parts] if parts else []


def _experiments(collection: Collection, drawings: Sequence[Drawing], out: Path) -> list[str]:
    if not collection.experiments:
        return []
    named = labels(collection.experiments)
    drawn = {d.experiment: d for d in drawings if d.experiment is not None}
    parts = ["<h2>Experiments one by one</h2>"]
    if sum(bool(experiment.runs) for experiment in collection.experiments) > len(drawn):
        parts.append(f"<p>Heat maps are drawn for the first {MAX_HEAT_MAPS}.</p>")
    for experiment in collection.experiments:
        names = ", ".join(experiment.names[key] for key in ("benchmark", "backbone", "backend"))
        device = experiment.device or "unknown"
        where = f"measured on {experiment.measured_on} data, device {device}"
        parts += [
            f"<details><summary>{escape(named[experiment])}</summary>",
            f"<p>{escape(names)}; {escape(where)}</p>",
            _html_table(_seeds(experiment, out)) if experiment.runs else "<p>No completed run.</p>",
            '<div class="side">',
            _html_figure(drawn[experiment]) if experiment in drawn else "",
            _configuration(experiment.config),
            "</div></details>",
        ]
    return parts


def _seeds(experiment: ExperimentRuns, out: Path) -> Table:
    metrics = metrics_of([experiment])
    rows = []
    for seed, run in experiment.runs.items():
        row = [text(seed)]
        for metric in metrics:
            row.append(percentage({"mean": run.metrics.get(metric), "ci95": None}))
        for key in ("train_seconds", "steps_per_second"):
            value = run.timing.get(key)
            if isinstance(value, (int, float)):
                row.append(Cell(f"{value:.1f}", float(value)))
            else:
                row.append(Cell(ABSENT, None))
        rows.append([*row, text(os.path.relpath(experiment.directories[seed], out))])
    names = [f"{metric_label(m)} (%)" for m in metrics]
    header = ["seed", *names, "training (s)", "steps per second"]
    return Table([*header, "directory"], rows, [""] * (len(header) + 1))


def _configuration(config: Mapping[str, object]) -> str:
    lines = "\n".join(f"{key}: {yaml_text(value)}" for key, value in config.items())
    return f"<pre>{escape(lines)}</pre>"


def _rest(collection: Collection, out: Path) -> list[str]:
    parts = []
    if collection.unfinished:
        parts += ["<h2>Not completed</h2>", _html_table(unfinished_table(collection, out))]
    for heading, entries in left_out(collection).items():
        if entries:
            listed = "".join(f"<li><code>{escape(entry)}</code></li>" for entry in entries)
            parts.append(f"<h2>{heading}</h2><ul>{listed}</ul>")
    return parts


def _html_figure(drawing: Drawing) -> str:
    data = base64.b64encode(drawing.content).decode()
    caption = escape(drawing.caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _filtered(name: str, table: Table) -> str:
    """Return a table below a search field that filters its rows."""
    box = f'<input type="search" data-table="{name}" placeholder="words that a row must contain">'
    return (
        f'<div class="filter"><label>Filter {box}</label> <output></output></div>'
        f"{_html_table(table, name=name)}"
    )


def _html_table(table: Table, *, name: str = "", coloured: bool = False) -> str:
    numbers = [is_number(table, place) for place in range(len(table.header))]
    head = []
    for title, key, number in zip(table.header, table.keys, numbers, strict=True):
        attributes = ' class="number"' * number + (f' title="{escape(key)}"' if key else "")
        head.append(f"<th{attributes}><button>{escape(title)}</button></th>")
    rows = []
    for row in table.rows:
        cells = []
        for cell, number in zip(row, numbers, strict=True):
            kinds = ["number"] * number + [_better_or_worse(cell)] * coloured
            attributes = f' class="{" ".join(kinds).strip()}"' if any(kinds) else ""
            if cell.value is not None:
                attributes += f' data-value="{escape(str(cell.value))}"'
            cells.append(f"<td{attributes}>{escape(cell.text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    own = f' id="{name}"' if name else ""
    return (
        f'<div class="wide"><table{own}><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _better_or_worse(cell: Cell) -> str:
    """Return "better" or "worse" if the interval is above or below 0, else ""."""
    if cell.half is None or not isinstance(cell.value, float) or abs(cell.value) <= cell.half:
        return ""
    return "better" if cell.value > 0 else "worse"

"""RESULTS.md: the page of what `make reproduce` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seqrun.checks import BACKENDS
from seqrun.evaluation.metrics import half_width, summarise
from seqrun.evaluation.text import metric_label, percent
from seqrun.evaluation.verdict import VERDICTS, Sample, compare, tells_apart, worst
from seqrun.reproductions.rows import Row

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
    tells = None if control is None else tells_apart(number, num_runs, ours, control)
    found["tells"] = "" if row.control is None else {True: "yes", False: "no", None: "?"}[tells]
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
    answers = [
        judged(row, content, backend, metric).get("tells") for metric in row.expected.metrics
    ]
    return not all(each == "no" for each in answers)


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
        details = ["", "", ""]
        if place == 0:
            details[0] = _each(len(record["seeds"]) for record in records)
            details[1] = ", ".join(f"{record['seconds']:.0f}" for record in records)
            details[2] = _each((record["commit"] or "")[:8] for record in records)
        cells = [name if place == 0 else "", metric_label(metric), published + label, *means]
        cells += [_each(differences), _each(verdicts), _each(tells), *details]
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

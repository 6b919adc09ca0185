"""Write the files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seqrun.checks import ConfigError
from seqrun.files import write_atomically
from seqrun.loggers.local import FIGURES
from seqrun.records.results import FILE
from seqrun.report.drawing import Drawing, heat_maps, overview
from seqrun.report.pairing import MAX_ALL_PAIRS, compare_pairs, rank, streams, titles
from seqrun.report.records import Collection, collect, find
from seqrun.report.tables import (
    matrix_table,
    pairs_table,
    results_table,
    to_csv,
    to_latex,
    to_markdown,
    unfinished_table,
)
from seqrun.report.words import PAIRED, UNITS, counts, left_out


def write_summary(run_directories: Sequence[Path], out: Path, metric: str | None = None) -> None:
    """Write summary.csv, summary.md and figures/ of some runs, as at the end of a multirun.

    Args:
        run_directories: the runs; those without a readable record are listed in the summary.
        out: the directory to write into, created if missing; existing files are replaced.
        metric: the metric that the tables are sorted by, the best first; None = by benchmark,
            backbone, backend and algorithm.
    """
    collection = collect([Path(directory) for directory in run_directories])
    if metric is not None:
        collection.experiments.sort(key=lambda e: rank(e, metric))
    _write_tables(collection, Path(out), list(overview(collection.experiments)))


def summarise_directory(directory: Path) -> None:
    """Write the summary of all runs below a directory into that directory."""
    write_summary(find([Path(directory)]), directory)


def write_report(roots: Sequence[Path], out: Path) -> Collection:
    """Write the summary of all runs at or below `roots`, summary.tex and index.html into `out`.

    Returns:
        The runs that were found.

    Raises:
        ConfigError: there are no runs, or `out` is itself a run directory.
    """
    from seqrun.report.page import html_page

    if (out / FILE).exists():
        raise ConfigError(f"--out={out}: must not be a run directory")
    missing = [str(root) for root in roots if not root.is_dir()]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: must be a directory")
    collection = collect(find(roots))
    if not collection.experiments and not collection.unreadable:
        raise ConfigError(f"no {FILE} at or below {', '.join(map(str, roots))}")
    drawings = [*overview(collection.experiments), *heat_maps(collection.experiments)]
    _write_tables(collection, out, drawings)
    write_atomically(out / "summary.tex", latex(collection))
    write_atomically(out / "index.html", html_page(collection, drawings, out))
    return collection


def _write_tables(collection: Collection, out: Path, drawings: Sequence[Drawing]) -> None:
    for drawing in drawings:
        write_atomically(out / FIGURES / drawing.name, drawing.content)
    write_atomically(out / "summary.csv", to_csv(collection.experiments, out))
    write_atomically(out / "summary.md", markdown(collection, drawings, out))


def markdown(collection: Collection, drawings: Sequence[Drawing], out: Path) -> str:
    """Return summary.md with paths relative to `out`."""
    experiments = collection.experiments
    lines = ["# Summary", "", counts(collection), ""]
    if experiments:
        lines += ["## Results", "", UNITS, "", to_markdown(results_table(experiments))]
    for drawing in drawings:
        if drawing.experiment is None:
            caption = drawing.caption.replace("[", "(").replace("]", ")")
            lines += [f"![{caption}]({FIGURES}/{drawing.name})", ""]
    lines += _compared(collection)
    if collection.unfinished:
        lines += ["## Not completed", "", to_markdown(unfinished_table(collection, out))]
    for heading, entries in left_out(collection).items():
        if entries:
            lines += [f"## {heading}", "", *(f"- `{entry}`" for entry in entries), ""]
    return "\n".join(lines).rstrip() + "\n"


def _compared(collection: Collection) -> list[str]:
    lines: list[str] = []
    groups = streams(collection.experiments)
    for group, title in zip(groups, titles(groups), strict=True):
        pairs = compare_pairs(group)
        if pairs:
            lines += [f"### {title}", "", to_markdown(pairs_table(pairs, group))]
            if 2 < len(group) <= MAX_ALL_PAIRS:
                lines += ["Average accuracy, row minus column:", ""]
                lines += [to_markdown(matrix_table(pairs, group))]
    return ["## Paired comparisons", "", PAIRED, "", *lines] if lines else []


def latex(collection: Collection) -> str:
    """Return summary.tex: tabulars for a document that uses booktabs."""
    parts = ["% needs \\usepackage{booktabs}", f"% {UNITS}"]
    if collection.experiments:
        parts.append(to_latex(results_table(collection.experiments)))
    for group in streams(collection.experiments):
        pairs = compare_pairs(group)
        if pairs:
            parts += [f"% {PAIRED}", to_latex(pairs_table(pairs, group))]
    return "\n".join(parts)

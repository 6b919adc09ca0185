"""Figures of a report, and their file names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from seqrun.evaluation.figures import curves_figure, matrices_figure, matrix_figure, png
from seqrun.report.differences import labels
from seqrun.report.pairing import score, streams, titles
from seqrun.report.records import ExperimentRuns

MAX_LINES = 8
"""Most curves of a figure; with more experiments, it shows the best setting of each algorithm."""
MAX_PANELS = 12
MAX_HEAT_MAPS = 60


@dataclass(frozen=True)
class Drawing:
    """A figure of a report.

    Attributes:
        name: file name.
        caption: what the figure shows.
        content: PNG.
        experiment: the experiment that it shows; None = several.
    """

    name: str
    caption: str
    content: bytes
    experiment: ExperimentRuns | None = None


def overview(experiments: Sequence[ExperimentRuns]) -> Iterator[Drawing]:
    """Draw, for each stream, the curves of its experiments and their matrices side by side."""
    groups = streams(experiments)
    names = Names()
    for group, title in zip(groups, titles(groups), strict=True):
        shown, which = chosen(group)
        named = labels(shown)
        bands = " with 95 % intervals over seeds" if any(len(e.runs) > 1 for e in shown) else ""
        curves = {named[e]: e.matrices for e in shown}
        yield Drawing(
            names.new("curves", group[0].names["benchmark"], group[0].names["backend"]),
            f"Average accuracy on the tasks seen{bands}: {title}{which}",
            png(curves_figure(curves, title)),
        )
        means = {named[e]: e.mean_matrix for e in shown[:MAX_PANELS]}
        panels = {name: matrix for name, matrix in means.items() if matrix is not None}
        best = f", the best {MAX_PANELS}" if len(shown) > MAX_PANELS else ""
        yield Drawing(
            names.new("matrices", group[0].names["benchmark"], group[0].names["backend"]),
            f"Accuracy matrices, mean over seeds (grey = not measured): {title}{which}{best}",
            png(matrices_figure(panels, title)),
        )


def heat_maps(experiments: Sequence[ExperimentRuns]) -> Iterator[Drawing]:
    """Draw the mean accuracy matrices of the first `MAX_HEAT_MAPS` experiments."""
    named = labels(experiments)
    names = Names()
    means = [(e, e.mean_matrix) for e in experiments]
    measured = [(e, matrix) for e, matrix in means if matrix is not None]
    for experiment, matrix in measured[:MAX_HEAT_MAPS]:
        several = f", mean of {len(experiment.runs)} seeds" if len(experiment.runs) > 1 else ""
        yield Drawing(
            names.new("matrix", named[experiment], experiment.names["benchmark"]),
            f"Accuracy matrix{several}: {named[experiment]}, {experiment.names['benchmark']}",
            png(matrix_figure(matrix, f"{named[experiment]}{several}")),
            experiment,
        )


def chosen(group: Sequence[ExperimentRuns]) -> tuple[list[ExperimentRuns], str]:
    """Return the experiments that one figure shows, best first, and a text about the choice."""
    if len(group) <= MAX_LINES:
        return list(group), ""
    best: dict[str, ExperimentRuns] = {}
    for experiment in sorted(group, key=score, reverse=True):
        best.setdefault(experiment.names["algo"], experiment)
    if len(best) == 1:
        return list(group[:MAX_LINES]), f", the best {MAX_LINES} of {len(group)} settings"
    if len(best) == len(group):
        return list(group), ""
    return list(best.values()), ", the best setting of each algorithm by the accuracy shown"


class Names:
    """Unique file names that are valid on any system."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def new(self, *words: str) -> str:
        """Return a new name made of `words`."""
        stem = re.sub(r"[^A-Za-z0-9_.=]+", "-", "-".join(words)).strip("-.")[:80]
        name, number = f"{stem}.png", 2
        while name in self._given:
            name, number = f"{stem}-{number}.png", number + 1
        self._given.add(name)
        return name

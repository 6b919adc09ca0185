"""Figures of accuracy matrices.

matplotlib is imported lazily and without pyplot, which has global state and may open windows.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrun.evaluation.metrics import half_widths, mean_matrix
from seqrun.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATRIX_FIGURE = "accuracy_matrix.png"
LINES_FIGURE = "accuracy_per_task.png"
OKABE_ITO = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
)
"""The colour-blind safe palette of Okabe & Ito, without black, which is used for averages."""
DPI = 120


def save_figures(
    directory: str | Path, matrix: np.ndarray, title: str = "", runs: Sequence[np.ndarray] = ()
) -> None:
    """Write both figures of an accuracy matrix into `directory`, each atomically.

    Args:
        directory: created if missing.
        matrix: (T+1, T) float, fractions; row 0 = untrained, NaN = not measured.
        title: title of both figures.
        runs: the runs' matrices, whose mean is `matrix`; with two or more, bands are drawn.
    """
    write_atomically(Path(directory) / MATRIX_FIGURE, png(matrix_figure(matrix, title)))
    write_atomically(Path(directory) / LINES_FIGURE, png(lines_figure(matrix, title, runs)))


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of `width` x `height` inches for the Agg renderer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def seen_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Return (T,) float64: after each task, the mean accuracy on the tasks seen; NaN = unknown."""
    return np.array([matrix[k, :k].mean() for k in range(1, len(matrix))])


def matrix_figure(matrix: np.ndarray, title: str = "") -> Figure:
    """Return a heat map in percent: one row after each task, one column per task."""
    from matplotlib import colormaps

    tasks = matrix.shape[1]
    cell = 0.62 if tasks <= 10 else 0.42
    figure, axes = _canvas(max(4.2, cell * tasks + 2.2), max(3.2, cell * (tasks + 1) + 1.3))
    colours = colormaps["viridis"].with_extremes(bad="#e4e4e4")
    percent = 100 * matrix
    image = axes.imshow(
        np.ma.masked_invalid(percent), cmap=colours, vmin=0, vmax=100, aspect="auto"
    )
    if tasks <= 40:  # with more, the numbers would be unreadable
        decimals, size = (1, 9) if tasks <= 10 else (0, 7)
        for (row, column), value in np.ndenumerate(percent):
            if not np.isnan(value):
                shade = "white" if value < 60 else "black"
                text = f"{value:.{decimals}f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=shade)
    every = 1 if tasks <= 40 else tasks // 20
    columns = range(0, tasks, every)
    axes.set_xticks(columns, [str(j + 1) for j in columns])
    rows = range(0, tasks + 1, every)
    axes.set_yticks(rows, ["untrained" if i == 0 else str(i) for i in rows])
    axes.set_xlabel("task")
    axes.set_ylabel("after training on task")
    axes.set_title(title, fontsize=10, parse_math=False)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("accuracy (%)")
    return figure


def lines_figure(matrix: np.ndarray, title: str = "", runs: Sequence[np.ndarray] = ()) -> Figure:
    """Return a figure of each task's accuracy over the stream, dotted until the task is trained.

    Args:
        matrix: (T+1, T) float, fractions.
        title: title of the figure.
        runs: the runs' matrices, whose mean is `matrix`; with two or more, bands show the 95 %
            intervals of the means.
    """
    from matplotlib import colormaps

    tasks = matrix.shape[1]
    figure, axes = _canvas(8.4, 4.6)
    percent = 100 * matrix
    if tasks <= len(OKABE_ITO):
        colours: list[Any] = list(OKABE_ITO[:tasks])
    else:  # many tasks: shades from blue to yellow
        colours = [colormaps["cividis"](j / (tasks - 1)) for j in range(tasks)]
    after = np.arange(tasks + 1)
    for j, colour in enumerate(colours):
        column = percent[:, j]
        axes.plot(after[: j + 2], column[: j + 2], ":", color=colour, linewidth=0.9, alpha=0.7)
        axes.plot(
            after[j + 1 :],
            column[j + 1 :],
            "o-",
            color=colour,
            linewidth=1.5,
            markersize=4,
            label=f"task {j + 1}",
        )
    seen = 100 * seen_accuracy(matrix)
    axes.plot(
        after[1:], seen, "s--", color="black", linewidth=2, markersize=4, label="average seen"
    )
    if len(runs) > 1:
        half = 100 * half_widths(np.stack(runs))
        for j, colour in enumerate(colours):
            _band(axes, after[j + 1 :], percent[j + 1 :, j], half[j + 1 :, j], colour)
        spread = 100 * half_widths(np.stack([seen_accuracy(run) for run in runs]))
        _band(axes, after[1:], seen, spread, "black")
    _over_stream(axes, after, "after training on task (0 = untrained)", "accuracy (%)", title)
    if tasks <= 44:
        columns = 1 if tasks <= 14 else 2
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, ncols=columns)
    return figure


def curves_figure(curves: Mapping[str, Sequence[np.ndarray]], title: str = "") -> Figure:
    """Return a figure of the average accuracy on the tasks seen, with 95 % bands.

    Args:
        curves: name of a curve -> the (T+1, T) matrices of its runs, at least one.
        title: title of the figure.
    """
    figure, axes = _canvas(9.6, max(4.6, 0.24 * len(curves) + 1.2))
    max_tasks, lowest, lines = 0, 100.0, []
    for index, matrices in enumerate(curves.values()):
        after = np.arange(1, len(matrices[0]))
        max_tasks = max(max_tasks, len(after))
        seen = 100 * np.stack([seen_accuracy(matrix) for matrix in matrices])
        lowest = np.fmin.reduce(seen, axis=None, initial=lowest)
        mean = mean_matrix(list(seen))
        colour = (*OKABE_ITO[:6], "black")[index % 7]
        style, marker = ("-", "--", ":")[index % 3], "osD^vPX"[index % 7]
        lines += axes.plot(
            after, mean, style, marker=marker, color=colour, linewidth=1.8, markersize=5
        )
        if len(matrices) > 1:
            _band(axes, after, mean, half_widths(seen), colour)
    label = "average accuracy on tasks seen (%)"
    _over_stream(axes, np.arange(1, max_tasks + 1), "after training on task", label, title)
    axes.set_ylim(10 * (lowest // 10) - 2, 102)
    names = [name if len(name) <= 44 else f"{name[:43]}…" for name in curves]
    legend = axes.legend(
        lines, names, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, handlelength=3.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def matrices_figure(matrices: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Return a figure of heat maps side by side: one row after each task, one column per task.

    Args:
        matrices: title of a heat map -> (T+1, T) float, fractions; at least one.
        title: title of the figure.
    """
    from matplotlib import colormaps

    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = new_figure(max(4.2, 2.6 * columns + 1.2), 2.7 * rows + 0.9)
    colours = colormaps["viridis"].with_extremes(bad="#e4e4e4")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(matrices) :]:
        axes.remove()
    for axes, (name, matrix) in zip(grid.flat, matrices.items(), strict=False):
        masked = np.ma.masked_invalid(100 * matrix)
        image = axes.imshow(masked, cmap=colours, vmin=0, vmax=100, aspect="auto")
        tasks = matrix.shape[1]
        every = max(1, -(-tasks // 6))
        axes.set_xticks(range(0, tasks, every), [str(j + 1) for j in range(0, tasks, every)])
        axes.set_yticks(range(0, tasks + 1, every))
        axes.set_title(textwrap.fill(name, 34), fontsize=8, parse_math=False)
    figure.supxlabel("task", fontsize=10)
    figure.supylabel("after training on task (0 = untrained)", fontsize=10)
    figure.suptitle(title, fontsize=10, parse_math=False)
    drawn = list(grid.flat[: len(matrices)])
    figure.colorbar(image, ax=drawn, fraction=0.04, pad=0.02).set_label("accuracy (%)")
    return figure


def _band(axes: Any, x: np.ndarray, mean: np.ndarray, half: np.ndarray, colour: Any) -> None:
    """Draw a band around a line, or an error bar if the line is a single point."""
    if len(x) > 1:
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
    else:
        axes.errorbar(x, mean, half, color=colour, capsize=4)


def _over_stream(axes: Any, after: np.ndarray, x_label: str, y_label: str, title: str) -> None:
    """Set ticks, limits and labels of a plot of accuracies (in percent) over the stream."""
    ticks = after[:: max(1, len(after) // 20)]
    axes.set_xticks(ticks, [str(i) for i in ticks])
    axes.set_ylim(-2, 102)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of `width` x `height` inches with one plot, and its axes."""
    figure = new_figure(width, height)
    return figure, figure.add_subplot()

"""Figures of an accuracy matrix as PNG files.

matplotlib is imported inside, and without pyplot: no window system, no global state.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
"""Okabe & Ito's colours for all kinds of colour vision (black is kept for the average)."""
DPI = 120


def save_figures(directory: str | Path, matrix: np.ndarray, title: str = "") -> None:
    """Write both figures of an accuracy matrix into `directory`, each atomically.

    Args:
        directory: made if missing.
        matrix: (T+1, T) float, fractions; row 0 = untrained, NaN = not measured.
        title: stands above both.
    """
    for name, figure in (
        (MATRIX_FIGURE, matrix_figure(matrix, title)),
        (LINES_FIGURE, lines_figure(matrix, title)),
    ):
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
        write_atomically(Path(directory) / name, png.getvalue())


def matrix_figure(matrix: np.ndarray, title: str = "") -> Figure:
    """Return the heat-map: rows = after each task, columns = tasks, accuracies in percent."""
    from matplotlib import colormaps

    tasks = matrix.shape[1]
    cell = 0.62 if tasks <= 10 else 0.42
    figure, axes = _canvas(max(4.2, cell * tasks + 2.2), max(3.2, cell * (tasks + 1) + 1.3))
    colours = colormaps["viridis"].with_extremes(bad="#e4e4e4")
    percent = 100 * matrix
    image = axes.imshow(
        np.ma.masked_invalid(percent), cmap=colours, vmin=0, vmax=100, aspect="auto"
    )
    if tasks <= 40:  # beyond, the numbers would not be readable
        decimals, size = (1, 9) if tasks <= 10 else (0, 7)
        for (row, column), value in np.ndenumerate(percent):
            if not np.isnan(value):
                shade = "white" if value < 60 else "black"
                text = f"{value:.{decimals}f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=shade)
    every = 1 if tasks <= 40 else tasks // 20
    shown = range(0, tasks, every)
    axes.set_xticks(shown, [str(j + 1) for j in shown])
    rows = range(0, tasks + 1, every)
    axes.set_yticks(rows, ["untrained" if i == 0 else str(i) for i in rows])
    axes.set_xlabel("task")
    axes.set_ylabel("after training on task")
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("accuracy (%)")
    return figure


def lines_figure(matrix: np.ndarray, title: str = "") -> Figure:
    """Return each task's accuracy over the stream; before a task was trained on, dotted."""
    from matplotlib import colormaps

    tasks = matrix.shape[1]
    figure, axes = _canvas(8.4, 4.6)
    percent = 100 * matrix
    if tasks <= len(OKABE_ITO):
        colours: list[Any] = list(OKABE_ITO[:tasks])
    else:  # many tasks: their order as a shade, from blue to yellow
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
    seen = [percent[k, :k].mean() for k in after[1:]]
    axes.plot(
        after[1:], seen, "s--", color="black", linewidth=2, markersize=4, label="average seen"
    )
    every = max(1, tasks // 20)
    shown = after[::every]
    axes.set_xticks(shown, [str(i) for i in shown])
    axes.set_ylim(-2, 102)
    axes.set_xlabel("after training on task (0 = untrained)")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if tasks <= 44:
        columns = 1 if tasks <= 14 else 2
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, ncols=columns)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of width x height inches, drawn by Agg, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()

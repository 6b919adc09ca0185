"""Plots for callbacks; matplotlib is imported lazily and without pyplot."""

from __future__ import annotations

import numpy as np

from seqrun.evaluation.figures import OKABE_ITO, new_figure, png

COLUMNS = 10


def inputs_png(x: np.ndarray, y: np.ndarray, title: str) -> bytes:
    """Return a PNG of a grid of images with their labels.

    Args:
        x: (N, H, W, C) uint8; three channels are shown as RGB, otherwise the mean over channels is
            shown in grey.
        y: (N,) labels.
        title: title of the figure.
    """
    figure = new_figure(1.0 * min(COLUMNS, max(len(x), 4)), 1.25 * -(-len(x) // COLUMNS) + 0.6)
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(-(-len(x) // COLUMNS), min(COLUMNS, len(x)), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, label in zip(grid.flat, x, y.tolist(), strict=False):
        shown = image if image.shape[-1] == 3 else image.mean(-1)
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(str(label), fontsize=9)
    return png(figure)


def stability_png(steps: np.ndarray, tasks: np.ndarray, rows: np.ndarray, title: str) -> bytes:
    """Return a PNG of each task's accuracy over the training steps.

    Args:
        steps, tasks: (N,) step and task (1-based) of each measurement.
        rows: (N, T) accuracies, fractions; NaN = not measured.
        title: title of the figure.
    """
    from matplotlib import colormaps

    figure = new_figure(8.4, 4.6)
    axes = figure.add_subplot()
    count = rows.shape[1]
    for j in range(count):
        few = count <= len(OKABE_ITO)
        colour = OKABE_ITO[j] if few else colormaps["cividis"](j / (count - 1))
        measured = ~np.isnan(rows[:, j])
        axes.plot(
            steps[measured],
            100 * rows[measured, j],
            color=colour,
            linewidth=1.2,
            label=f"task {j + 1}",
        )
    for task in range(1, count):
        axes.axvline(steps[tasks == task].max(), color="black", linewidth=0.7, linestyle=":")
    axes.set_ylim(-2, 102)
    axes.set_xlabel("training step (dotted: a task ends)")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if count <= 44:
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, ncols=1 + (count > 14)
        )
    return png(figure)

"""Figures: PNG files of the expected size and content."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from seqrun.evaluation.figures import DPI, lines_figure, matrix_figure, save_figures


def matrix_of(tasks: int) -> np.ndarray:
    rows, columns = np.indices((tasks + 1, tasks))
    return np.where(columns <= rows, 0.9 - 0.01 * (rows - columns), np.nan)


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


@pytest.mark.ci
@pytest.mark.parametrize("tasks", [1, 5, 20])
def test_png_files(tmp_path, tasks):
    from matplotlib.image import imread

    save_figures(tmp_path, matrix_of(tasks), "ewc")
    width, height = png_size(tmp_path / "accuracy_per_task.png")
    assert (width, height) == (round(8.4 * DPI), round(4.6 * DPI))
    width, height = png_size(tmp_path / "accuracy_matrix.png")
    cell = 0.62 if tasks <= 10 else 0.42
    assert width == pytest.approx(max(4.2, cell * tasks + 2.2) * DPI, abs=1)
    assert height == pytest.approx(max(3.2, cell * (tasks + 1) + 1.3) * DPI, abs=1)
    red = imread(tmp_path / "accuracy_matrix.png")[..., 0]
    assert len(np.unique(red)) > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "accuracy_matrix.png",
        "accuracy_per_task.png",
    ]


@pytest.mark.ci
def test_the_same_matrix_gives_the_same_bytes(tmp_path):
    for place in ("a", "b"):
        save_figures(tmp_path / place, matrix_of(3))
    for name in ("accuracy_matrix.png", "accuracy_per_task.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_heat_map_numbers_and_labels():
    axes = matrix_figure(np.array([[0.1, 0.2], [0.9, np.nan], [0.5, 0.75]])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["10.0", "20.0", "90.0", "50.0", "75.0"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("task", "after training on task")
    assert [t.get_text() for t in axes.get_yticklabels()] == ["untrained", "1", "2"]


def test_lines_and_labels():
    figure = lines_figure(np.array([[0.1, 0.2], [0.9, 0.3], [0.5, 0.75]]))
    axes = figure.axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["task 1"] == [[1, 90.0], [2, 50.0]]
    assert drawn["task 2"] == [[2, 75.0]]
    assert drawn["average seen"] == [[1, 90.0], [2, 62.5]]
    assert axes.get_ylabel() == "accuracy (%)"
    assert axes.get_xlabel().startswith("after training on task")


def test_every_task_has_a_colour_of_its_own():
    for tasks in (5, 7, 8, 20):
        lines = lines_figure(matrix_of(tasks)).axes[0].lines
        named = [line for line in lines if str(line.get_label()).startswith("task")]
        assert len({str(line.get_color()) for line in named}) == tasks

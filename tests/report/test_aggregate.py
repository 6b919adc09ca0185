"""Several seeds in one run: the files at the top of its directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqrun.evaluation.figures import lines_figure
from seqrun.evaluation.metrics import half_widths, summarise
from seqrun.runs.aggregate import mean_lines

ROOT = Path(__file__).parents[2]


def test_lines_are_averaged_by_position_and_names(tmp_path):
    first = [
        {"step": 0, "epoch": 1, "task": 1, "loss": 1.0},
        {"step": 1, "epoch": 1, "task": 1, "loss": 2.0},
        {"step": 1, "epoch": 1, "task": 1, "accuracy": 0.5, "gap": None},
    ]
    second = [
        {"step": 0, "epoch": 1, "task": 1, "loss": 3.0},
        {"step": 1, "epoch": 1, "task": 1, "loss": None},
        {"step": 1, "epoch": 1, "task": 1, "accuracy": 0.7, "gap": None},
        {"step": 2, "epoch": 1, "task": 1, "loss": 5.0},  # this seed trained for longer
    ]
    files = []
    for name, lines in (("a", first), ("b", second)):
        files.append(tmp_path / name)
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = [json.loads(line) for line in mean_lines(files)]
    at = {"epoch": 1, "task": 1}
    assert found == [
        {"step": 0, **at, "loss": 2.0, "loss_std": pytest.approx(2**0.5)},
        {"step": 1, **at, "loss": 2.0, "loss_std": None},
        {
            "step": 1,
            **at,
            "accuracy": pytest.approx(0.6),
            "accuracy_std": pytest.approx(0.1 * 2**0.5),
            "gap": None,
            "gap_std": None,
        },
        {"step": 2, **at, "loss": 5.0, "loss_std": None},
    ]


def test_lines_are_in_the_order_of_steps(tmp_path):
    """Whatever each seed logged, such as one whose training stopped early."""
    files = [tmp_path / name for name in "abc"]
    for file, steps in zip(files, ([2, 9], [1, 2, 3], [0, 3, 10]), strict=True):
        lines = [{"step": step, "epoch": 1, "task": 1, "loss": float(step)} for step in steps]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for order in (files, files[::-1]):
        found = [json.loads(line) for line in mean_lines(order)]
        assert [line["step"] for line in found] == [0, 1, 2, 3, 9, 10]
        assert [line["loss"] for line in found] == [0, 1, 2, 3, 9, 10]
        assert found == [json.loads(line) for line in mean_lines(files)]


def test_half_widths_are_those_of_the_summary():
    values = np.array([[0.1, 0.5], [0.4, np.nan], [0.2, 0.7], [0.9, np.nan]])
    expected = []
    for column in values.T:
        summary = summarise([{"m": None if np.isnan(v) else float(v)} for v in column])["m"]
        expected.append(summary["ci95"][1] - summary["mean"])
    np.testing.assert_allclose(half_widths(values), expected, rtol=1e-12)
    assert np.isnan(half_widths(values[:1])).all()


def test_bands_of_the_figure():
    runs = [np.array([[0.1, 0.1], [0.9, np.nan], [a, 0.8]]) for a in (0.5, 0.7)]
    mean = np.mean(runs, axis=0)
    bands = lines_figure(mean, runs=runs).axes[0].collections
    extent = [band.get_paths()[0].get_extents() for band in bands[:1]]
    half = 12.706204736174694 * 10  # t(1 df) std / sqrt(2), std = 0.1 sqrt(2), in percent
    assert [extent[0].ymin, extent[0].ymax] == pytest.approx([60 - half, 60 + half])
    assert not lines_figure(mean).axes[0].collections


@pytest.mark.ci
def test_a_run_of_two_seeds(tmp_path):
    command = [sys.executable, "run.py", "algo=naive", "seed=[3,5]", "backbone.width=8"]
    command += ["benchmark.num_tasks=2", "benchmark.samples_per_task=30"]
    command += [f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy (%) on test data") == 1, "one table, over both seeds"
    assert done.stdout.count("\naverage accuracy ") == 3, "a last line for each seed and for all"
    lines = {
        place: [json.loads(line) for line in (tmp_path / place / "metrics.jsonl").open()]
        for place in (".", "seeds/3", "seeds/5")
    }
    assert len(lines["."]) == len(lines["seeds/3"]) == len(lines["seeds/5"]) > 4
    for top, one, other in zip(*lines.values(), strict=True):
        for name in one:
            assert top[name] == pytest.approx((one[name] + other[name]) / 2)
        for name in one.keys() - {"step", "epoch", "task"}:
            assert top[f"{name}_std"] == pytest.approx(abs(one[name] - other[name]) / 2**0.5)
    for name in ("accuracy_matrix.png", "accuracy_per_task.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 5000

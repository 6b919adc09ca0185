"""PreviewCallback: which images it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import build

from seqrun.callbacks import PreviewCallback
from seqrun.callbacks.preview import round_robin
from seqrun.checks import ConfigError
from seqrun.evaluation import plots


def test_classes_take_turns():
    labels = np.array([2, 0, 0, 1, 2, 0, 1])
    assert round_robin(labels, 3).tolist() == [1, 3, 0]  # the first 0, 1 and 2
    assert round_robin(labels, 5).tolist() == [1, 2, 3, 6, 0]
    assert round_robin(labels, 99).tolist() == [1, 2, 5, 3, 6, 0, 4]


@pytest.mark.ci
def test_each_task_has_its_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[Any] = []
    draw = plots.inputs_png

    def note(x: np.ndarray, y: np.ndarray, title: str) -> bytes:
        shown.append((x, y, title))
        return draw(x, y, title)

    monkeypatch.setattr(plots, "inputs_png", note)
    stream = {"num_tasks": 2, "samples_per_task": 40, "normalize": True, "pad_to": 10}
    algorithm = build("er", "torch", callbacks=[PreviewCallback(num_images=7)], stream=stream)
    algorithm.run_dir = tmp_path
    algorithm.fit()
    assert len(shown) == 2
    for task, (x, y, title) in enumerate(shown, 1):
        data = algorithm.benchmark.task_data(task, "train")
        chosen = round_robin(data.y, 7)
        np.testing.assert_array_equal(x, data.x[chosen])
        np.testing.assert_array_equal(y, data.y[chosen])
        assert x.shape == (7, 10, 10, 1)
        assert title.startswith(f"task {task}/2 of rotated_digits: 10 x 10 x 1, 40 training")
        assert "normalised: (pixel / 255 - [" in title
        png = (tmp_path / "figures" / "inputs" / f"task_{task}.png").read_bytes()
        assert png[:4] == b"\x89PNG"


@pytest.mark.ci
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 10, 13])
def test_any_number_of_images_and_channels(channels: int, count: int):
    x = np.zeros((count, 4, 6, channels), np.uint8)
    assert plots.inputs_png(x, np.arange(count), "title")[:4] == b"\x89PNG"


def test_nothing_is_drawn_without_a_directory():
    build("naive", "torch", callbacks=[PreviewCallback()], stream={"num_tasks": 1}).fit()


def test_bad_arguments():
    with pytest.raises(ConfigError, match="num_images=0: must be an integer >= 1"):
        PreviewCallback(num_images=0)

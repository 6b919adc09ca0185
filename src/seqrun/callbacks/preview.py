"""PreviewCallback: draws some training images of each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seqrun.checks import whole
from seqrun.files import write_atomically
from seqrun.training.callback import BaseCallback, Run


@dataclass(kw_only=True, eq=False)
class PreviewCallback(BaseCallback):
    """Write figures/inputs/task_<t>.png: some of each task's training images with their labels.

    The images are shown as stored: after rotation, permutation and padding, but before division by
    255 and the normalisation that the title states. They are chosen from the classes in turn,
    starting with the first image of each, so nothing is random.

    Args:
        num_images: largest number of images per task, >= 1.

    Raises:
        ConfigError: a value out of range.
    """

    num_images: int = 20

    products: ClassVar[tuple[str, ...]] = ("figures",)

    def __post_init__(self) -> None:
        whole("num_images", self.num_images, 1)

    def on_before_epoch(self, run: Run) -> None:
        """Draw the figure at the start of a task's first epoch, when its data are loaded."""
        if run.epoch != 1 or run.directory is None:
            return
        from seqrun.evaluation.plots import inputs_png

        current = slice(run.algorithm.num_current)
        x, y = run.algorithm.replay_dataset.x[current], run.algorithm.replay_dataset.y[current]
        chosen = round_robin(y, self.num_images)
        height, width, channels = x.shape[1:]
        transform = run.algorithm.benchmark.transform
        title = f"task {run.task}/{run.algorithm.num_tasks} of {run.algorithm.benchmark.name}: "
        title += f"{height} x {width} x {channels}, {len(y)} training samples"
        if transform.mean is not None and transform.std is not None:
            mean, std = (
                ", ".join(f"{v:.3g}" for v in np.atleast_1d(a))
                for a in (transform.mean, transform.std)
            )
            title += f"\nnormalised: (pixel / 255 - [{mean}]) / [{std}]"
        name = f"task_{run.task:0{len(str(run.algorithm.num_tasks))}d}.png"
        png = inputs_png(x[chosen], y[chosen], title)
        write_atomically(run.directory / "figures" / "inputs" / name, png)


def round_robin(labels: np.ndarray, count: int) -> np.ndarray:
    """Choose samples from the classes in turn: the first of every class, then the second, etc.

    Args:
        labels: (N,) integers.
        count: largest number of samples to choose.

    Returns:
        Indices of the chosen samples, sorted by label and then by index.
    """
    by_label = np.argsort(labels, kind="stable")
    ordered = labels[by_label]
    turn = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    chosen = by_label[np.lexsort((ordered, turn))[:count]]
    return chosen[np.lexsort((chosen, labels[chosen]))]

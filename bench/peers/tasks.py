"""Write images for the peers: python bench/peers/tasks.py FILE [--tasks N | --noise N].

Those of Rotated MNIST are of seqrun's own benchmark: raw, and turned as every task has them. Those
of ResNet18Thin are noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from seqrun.benchmarks import RotatedMNIST
from seqrun.plan import RandomStreams


def write(path: Path, num_tasks: int) -> None:
    """Write an .npz file: uint8 images (N, 28, 28) and labels of both splits, and the angles."""
    benchmark = RotatedMNIST(num_tasks=num_tasks)
    benchmark.prepare(RandomStreams(0))
    found = {"angles": np.arange(num_tasks) * benchmark.per_task_rotation}
    for split in ("train", "test"):
        for task in range(1, num_tasks + 1):
            data = benchmark.task_data(task, split)
            found[f"{split}_{task}"] = data.x.reshape(-1, 28, 28)
            found[f"{split}_labels"] = data.y
    np.savez(path, **found)


def write_noise(path: Path, size: int) -> None:
    """Write an .npz file of one task: uint8 images (size, 32, 32, 3) and labels."""
    rng = np.random.default_rng(0)
    found = {"angles": np.zeros(1)}
    for split in ("train", "test"):
        found[f"{split}_1"] = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
        found[f"{split}_labels"] = rng.integers(0, 10, size)
    np.savez(path, **found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--noise", type=int, help="images of ResNet18Thin's kind, instead")
    asked = parser.parse_args()
    if asked.noise is None:
        write(asked.path, asked.tasks)
    else:
        write_noise(asked.path, asked.noise)

"""What every peer is asked to do, and what it answers: one line of JSON.

A rate: the steps per second of the last task, after a warm-up, with whatever the peer does between
two steps; naive trains on one task, the others on a second one after a short first. With --whole:
every task in full, evaluated on after each, and the seconds of the parts.

Images reach the peer in one of three ways (--data): `images`, turned before, uint8, made a tensor
one by one by the peer's own transforms; `turning`, raw, and turned by them too whenever one is
read, as the peer's own Rotated MNIST does; `tensors`, float32 in memory, the least there can be.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCH, WIDTH, LR = 10, 256, 0.01
MEMORY, MEMORY_BATCH = 1000, 10  # er
PER_TASK, REFERENCE_BATCH = 250, 256  # agem
EWC_LAMBDA = 30.0
FIRST, TESTED = 2000, 100
"""Samples of the short first task, which fills the memory, and of a test set when rates are
measured."""
ALGORITHMS = ("naive", "ewc", "er", "agem")
DATA = ("images", "turning", "tensors")
NETWORKS = ("mlp", "resnet18_thin")


@dataclass
class Clock:
    """The seconds of the timed task's steps, of all training and of reading batches alone."""

    warm_up: int
    steps: int = 0
    started: float = 0.0
    ended: float = 0.0
    training: float = 0.0
    _since: float = field(default=0.0, repr=False)

    def begin_task(self) -> None:
        """Start a task: only the last one's steps count."""
        self.steps, self._since = 0, time.perf_counter()

    def step(self) -> None:
        """Note that a step is done."""
        self.steps += 1
        self.ended = time.perf_counter()
        if self.steps == self.warm_up:
            self.started = self.ended

    def end_task(self) -> None:
        """Note that a task's steps are done."""
        self.training += time.perf_counter() - self._since

    def rate(self) -> float:
        """Return steps per second of the last task, after the warm-up."""
        return (self.steps - self.warm_up) / (self.ended - self.started)


@dataclass
class Split:
    """A task's uint8 images, labels, and the angle by which they are yet to turn.

    Images are (N, 28, 28), or (N, 32, 32, 3) for a network with convolutions.
    """

    images: np.ndarray
    labels: np.ndarray
    angle: float | None

    def floats(self) -> np.ndarray:
        """Return the images as float32 in [0, 1], channels first."""
        images = self.images.astype(np.float32) / 255
        return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2).copy()


def asked(description: str) -> argparse.Namespace:
    """Return what the command asks for."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("algo", choices=ALGORITHMS)
    parser.add_argument("file", type=Path, help="written by bench/peers/tasks.py")
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--data", choices=DATA, default="images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="of the data loaders")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--warm-up", type=int, default=50)
    parser.add_argument("--whole", action="store_true", help="every task in full")
    parser.add_argument("--samples", type=int, help="of each task, with --whole; default: all")
    return parser.parse_args()


def splits(arguments: argparse.Namespace) -> list[tuple[Split, Split]]:
    """Return the training and test data of every task that is to be trained on."""
    timed = (arguments.warm_up + arguments.steps) * BATCH
    with np.load(arguments.file) as file:
        angles = file["angles"]
        if arguments.whole:
            sizes = [arguments.samples] * len(angles)
        else:
            sizes = [timed] if arguments.algo == "naive" else [FIRST, timed]
        tested = None if arguments.whole else TESTED

        def split(name: str, task: int, size: int | None) -> Split:
            turning = arguments.data == "turning"
            images = file[f"{name}_1" if turning else f"{name}_{task}"][:size]
            angle = float(angles[task - 1]) if turning else None
            return Split(images, file[f"{name}_labels"][:size].astype(np.int64), angle)

        return [
            (split("train", task, size), split("test", task, tested))
            for task, size in enumerate(sizes, 1)
        ]


def reading(loader: Any, steps: int) -> float:
    """Return the batches per second that a data loader gives when nothing else is done."""
    batches = iter(loader)
    next(batches)  # starts its workers
    started, count = time.perf_counter(), 0
    for count, _ in enumerate(batches, 1):  # noqa: B007
        if count == steps:
            break
    return count / (time.perf_counter() - started)


def answer(
    arguments: argparse.Namespace, clock: Clock, parts: dict[str, float], packages: tuple[str, ...]
) -> None:
    """Write the line of JSON."""
    told = {
        "algo": arguments.algo,
        "backend": arguments.backend,
        "data": arguments.data,
        "threads": arguments.threads,
        "workers": arguments.workers,
        "rate": clock.rate(),
        "parts": parts,
        "versions": {name: version(name) for name in packages},
    }
    sys.__stdout__.write(json.dumps(told) + "\n")

"""What a training step of an MLP cannot do without: its matrix products and its memory traffic.

The products are timed at the step's own shapes and in its order, with NumPy's BLAS and with
torch.mm(out=), each with the step's threads or with one, whichever takes less long, on arrays that
are in cache if they fit. Their time includes reading the weights and writing the gradients, which
are their operands and results. So the roofline adds only what no product does: SGD reads every
gradient, and reads and writes every parameter. Bytes become seconds by the bandwidth of copying one
array as large as all parameters onto another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

ITEM = 4
"""Bytes of a float32."""
TIMINGS, SECONDS = 5, 0.02
"""Of which the shortest counts, and how long each takes about."""


def products(batch: int, sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (m, k, n) of every product (m, k) @ (k, n): forward, then backward.

    The first layer's inputs need no gradient.
    """
    layers = list(pairwise(sizes))
    forward = [(batch, i, o) for i, o in layers]
    backward = []
    for place, (i, o) in reversed(list(enumerate(layers))):
        backward.append((i, batch, o))
        if place:
            backward.append((batch, o, i))
    return forward + backward


def flops(batch: int, sizes: Sequence[int]) -> int:
    """Return the floating-point operations of a step's products: two per multiply-add."""
    return sum(2 * m * k * n for m, k, n in products(batch, sizes))


def num_parameters(sizes: Sequence[int]) -> int:
    """Return the entries of all matrices and biases."""
    return sum(i * o + o for i, o in pairwise(sizes))


def traffic(sizes: Sequence[int]) -> dict[str, int]:
    """Return the bytes that a step of plain SGD moves, by what they are."""
    every = num_parameters(sizes) * ITEM
    first = sizes[0] * sizes[1] * ITEM
    biases = sum(sizes[1:]) * ITEM
    return {
        "parameters read by the forward pass": every,
        "parameters read by the backward pass": every - first - biases,
        "gradients written": every,
        "gradients read": every,
        "parameters updated": 2 * every,
    }


def update_bytes(sizes: Sequence[int]) -> int:
    """Return the bytes that the update moves, which no product does."""
    moved = traffic(sizes)
    return moved["gradients read"] + moved["parameters updated"]


class Products:
    """A step's products on arrays of their own: those of a network without nonlinearities.

    Args:
        batch: samples.
        sizes: of inputs, hidden layers and outputs.

    Attributes:
        weights: (in, out) float32 of each layer.
        values: (batch, size) of inputs, hidden layers and outputs.
        slopes: (batch, size) gradients of the same; the last is given, the first is not computed.
        gradients: of the weights.
    """

    def __init__(self, batch: int, sizes: Sequence[int]) -> None:
        rng = np.random.default_rng(0)

        def draw(rows: int, columns: int) -> np.ndarray:
            return rng.standard_normal((rows, columns), np.float32) / np.float32(rows**0.5)

        self.weights = [draw(i, o) for i, o in pairwise(sizes)]
        self.values = [draw(batch, size) for size in sizes]
        self.slopes = [draw(batch, size) for size in sizes]
        self.gradients = [np.zeros_like(weight) for weight in self.weights]
        self.calls: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for layer, weight in enumerate(self.weights):
            self.calls.append((self.values[layer], weight, self.values[layer + 1]))
        for layer, weight in reversed(list(enumerate(self.weights))):
            slope = self.slopes[layer + 1]
            self.calls.append((self.values[layer].T, slope, self.gradients[layer]))
            if layer:
                self.calls.append((slope, weight.T, self.slopes[layer]))

    def by_numpy(self) -> None:
        """Do them with NumPy's BLAS."""
        for left, right, out in self.calls:
            np.matmul(left, right, out=out)

    def by_torch(self) -> Callable[[], None]:
        """Return what does them with torch.mm, into the same arrays."""
        import torch

        calls = [tuple(map(torch.from_numpy, call)) for call in self.calls]

        def call() -> None:
            for left, right, out in calls:
                torch.mm(left, right, out=out)

        return call


class Roofline(NamedTuple):
    """What was measured: seconds of a step's products, and bytes per second of copying."""

    numpy: float
    torch: float
    bandwidth: float

    @property
    def products(self) -> float:
        """Seconds of the faster library."""
        return min(self.numpy, self.torch)

    def rate(self, num_bytes: int) -> float:
        """Return the steps per second that products and moving `num_bytes` allow."""
        return 1 / (self.products + num_bytes / self.bandwidth)


def measure(batches: Sequence[int], sizes: Sequence[int], threads: int = 1) -> Roofline:
    """Measure a step that passes over so many batches, of these sizes, one after the other.

    Args:
        batches: samples of each.
        sizes: of inputs, hidden layers and outputs.
        threads: that the step may have.
    """
    import torch
    from threadpoolctl import threadpool_limits

    passes = [Products(batch, sizes) for batch in batches]
    here = np.zeros(num_parameters(sizes), np.float32)
    there = np.ones_like(here)
    before = torch.get_num_threads()
    by_numpy, by_torch = [], []
    for count in sorted({1, threads}):
        with threadpool_limits(count), torch.no_grad():
            torch.set_num_threads(count)
            by_numpy.append(sum(_seconds(step.by_numpy) for step in passes))
            by_torch.append(sum(_seconds(step.by_torch()) for step in passes))
    with threadpool_limits(1):
        copying = _seconds(lambda: np.copyto(here, there))
    torch.set_num_threads(before)
    return Roofline(min(by_numpy), min(by_torch), 2 * here.nbytes / copying)


def _seconds(call: Callable[[], Any]) -> float:
    """Return the seconds of a call: the least of several timings of many."""
    call()
    started = time.perf_counter()
    call()
    number = max(1, int(SECONDS / (time.perf_counter() - started)))
    timings = []
    for _ in range(TIMINGS):
        started = time.perf_counter()
        for _ in range(number):
            call()
        timings.append((time.perf_counter() - started) / number)
    return min(timings)

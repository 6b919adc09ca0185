"""Hand-written minimal loops of W1's naive training: what seqrun's rates are held against."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from seqrun.benchmarks import RotatedMNIST
from seqrun.plan import RandomStreams

BATCH, WIDTH, LR = 10, 256, 0.01
SIZES = (784, WIDTH, WIDTH, 10)
TOGETHER = 8


def task_one(samples: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W1's first task as float32 inputs, labels and one epoch's batches."""
    benchmark = RotatedMNIST(num_tasks=1, batch_size=BATCH, samples_per_task=samples)
    benchmark.prepare(RandomStreams(0))
    data = benchmark.task_data(1, "train")
    x = data.x.reshape(len(data.y), -1).astype(np.float32) / 255
    return x, data.y, np.random.default_rng(0).permutation(len(x)).reshape(-1, BATCH)


def initial() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return a float32 (in, out) matrix and a bias for each layer."""
    chance = np.random.default_rng(0)
    return [
        (chance.normal(0, i**-0.5, (i, o)).astype(np.float32), np.zeros(o, np.float32))
        for i, o in zip(SIZES, SIZES[1:], strict=False)
    ]


class HandTorch:
    """nn.Sequential and torch.optim.SGD over sliced tensors."""

    def __init__(self, threads: int, samples: int | None) -> None:
        import torch

        self.torch, self.threads = torch, threads
        x, y, order = task_one(samples)
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y).long()
        self.order = torch.from_numpy(order)

    def rate(self) -> float:
        """Train an epoch; return steps per second."""
        torch, nn = self.torch, self.torch.nn
        torch.set_num_threads(self.threads)
        model = nn.Sequential(
            nn.Linear(784, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 10),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        started = time.perf_counter()
        for index in self.order:
            loss = nn.functional.cross_entropy(model(self.x[index]), self.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return len(self.order) / (time.perf_counter() - started)


class HandTorchCompiled:
    """Eight steps, gathers and all, unrolled in one graph that torch.compile compiles."""

    def __init__(self, threads: int, samples: int | None) -> None:
        import torch
        import torch._dynamo

        self.torch, self.threads = torch, threads
        x, y, order = task_one(samples)
        self.data = torch.from_numpy(x), torch.from_numpy(y).long()
        order = torch.from_numpy(order)
        whole = len(order) // TOGETHER * TOGETHER
        self.calls = order[:whole].reshape(-1, TOGETHER, BATCH)

        def loss(params: list[Any], x: Any, y: Any) -> Any:
            for w, b in params[:-1]:
                x = torch.relu(torch.addmm(b, x, w))
            w, b = params[-1]
            return torch.nn.functional.cross_entropy(torch.addmm(b, x, w), y)

        def steps(params: list[Any], x: Any, y: Any, rows: Any) -> None:
            flat = [p for layer in params for p in layer]
            for row in rows.unbind():
                gradient = torch.autograd.grad(loss(params, x[row], y[row]), flat)
                with torch.no_grad():
                    for p, g in zip(flat, gradient, strict=True):
                        p.sub_(LR * g)

        # As in seqrun: without this setting autograd.grad breaks the graph.
        torch._dynamo.config.trace_autograd_ops = True
        self.steps = torch.compile(steps, fullgraph=True, dynamic=False)
        self._epoch(self.calls[:2])  # compiles

    def _epoch(self, calls: Any) -> None:
        self.torch.set_num_threads(self.threads)
        tensor = self.torch.from_numpy
        params = [tuple(tensor(p).requires_grad_() for p in layer) for layer in initial()]
        for rows in calls:
            self.steps(params, *self.data, rows)

    def rate(self) -> float:
        """Train an epoch; return steps per second."""
        started = time.perf_counter()
        self._epoch(self.calls)
        return len(self.calls) * TOGETHER / (time.perf_counter() - started)


class HandJax:
    """One jit(lax.scan) over the whole epoch, data on the device."""

    def __init__(self, threads: int, samples: int | None) -> None:
        import jax
        import jax.numpy as jnp

        x, y, order = task_one(samples)
        self.jax, self.data = jax, (jnp.asarray(x), jnp.asarray(y), jnp.asarray(order))
        self.params = jax.tree.map(jnp.asarray, initial())

        def loss(params, x, y):
            for w, b in params[:-1]:
                x = jax.nn.relu(x @ w + b)
            w, b = params[-1]
            return -jnp.take_along_axis(jax.nn.log_softmax(x @ w + b), y[:, None], 1).mean()

        def step(params, index):
            batch = self.data[0][index], self.data[1][index]
            value, gradient = jax.value_and_grad(loss)(params, *batch)
            return jax.tree.map(lambda p, g: p - LR * g, params, gradient), value

        self.epoch = jax.jit(lambda params, order: jax.lax.scan(step, params, order))
        jax.block_until_ready(self.epoch(self.params, self.data[2][:100]))
        self.epoch = self.epoch.lower(self.params, self.data[2]).compile()

    def rate(self) -> float:
        """Train an epoch; return steps per second."""
        started = time.perf_counter()
        self.jax.block_until_ready(self.epoch(self.params, self.data[2]))
        return len(self.data[2]) / (time.perf_counter() - started)

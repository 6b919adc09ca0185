"""Hand-written minimal loops of naive training on Rotated MNIST, to compare seqrun with."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rotated_mnist_mlp import BATCH, LR, SIZES, WIDTH, Setting

from seqrun.plan import RandomStreams

TOGETHER = 8


def task_one(setting: Setting) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return Rotated MNIST's first task as float32 inputs, labels and one epoch's batches."""
    benchmark = setting.stream(1)
    benchmark.prepare(RandomStreams(0))
    data = benchmark.task_data(1, "train")
    x = data.x.reshape(len(data.y), -1).astype(np.float32) / 255
    order = np.random.default_rng(0).permutation(len(x))[: len(x) // BATCH * BATCH]
    return x, data.y, order.reshape(-1, BATCH)


def initial() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return a float32 (in, out) matrix and a bias for each layer."""
    rng = np.random.default_rng(0)
    return [
        (rng.normal(0, i**-0.5, (i, o)).astype(np.float32), np.zeros(o, np.float32))
        for i, o in zip(SIZES, SIZES[1:], strict=False)
    ]


def wait(torch: Any, setting: Setting) -> None:
    """Wait until a GPU has done what it was given."""
    if setting.device == "cuda":
        torch.cuda.synchronize()


class HandTorch:
    """nn.Sequential and torch.optim.SGD over sliced tensors."""

    def __init__(self, setting: Setting) -> None:
        import torch

        self.torch, self.setting = torch, setting
        x, y, order = (torch.from_numpy(a).to(setting.device) for a in task_one(setting))
        self.x, self.y, self.order = x, y.long(), order

    def rate(self) -> float:
        """Train an epoch; return steps per second."""
        torch, nn = self.torch, self.torch.nn
        torch.set_num_threads(self.setting.threads)
        model = nn.Sequential(
            nn.Linear(784, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 10),
        ).to(self.setting.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        started = time.perf_counter()
        for index in self.order:
            loss = nn.functional.cross_entropy(model(self.x[index]), self.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait(torch, self.setting)
        return len(self.order) / (time.perf_counter() - started)


class HandTorchCompiled:
    """Eight steps, gathers and all, unrolled in one graph that torch.compile compiles."""

    def __init__(self, setting: Setting) -> None:
        import torch
        import torch._dynamo

        self.torch, self.setting = torch, setting
        x, y, order = (torch.from_numpy(a).to(setting.device) for a in task_one(setting))
        self.data = x, y.long()
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
        self.torch.set_num_threads(self.setting.threads)

        def tensor(array: np.ndarray) -> Any:
            return self.torch.from_numpy(array).to(self.setting.device).requires_grad_()

        params = [tuple(map(tensor, layer)) for layer in initial()]
        for rows in calls:
            self.steps(params, *self.data, rows)
        wait(self.torch, self.setting)

    def rate(self) -> float:
        """Train an epoch; return steps per second."""
        started = time.perf_counter()
        self._epoch(self.calls)
        return len(self.calls) * TOGETHER / (time.perf_counter() - started)


class HandJax:
    """One jit(lax.scan) over the whole epoch, data on the device."""

    def __init__(self, setting: Setting) -> None:
        import jax
        import jax.numpy as jnp

        device = jax.devices("gpu" if setting.device == "cuda" else "cpu")[0]
        self.jax, self.data = jax, jax.device_put(task_one(setting), device)
        self.params = jax.device_put(initial(), device)

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

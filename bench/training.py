"""Steps per second of W1's training on one backend, beside a hand-written minimal loop.

W1: Rotated MNIST, 60,000 samples a task, batch 10, MLP 784-256-256-10, SGD lr 0.01. seqrun runs
with its default callbacks and loggers; what is timed is one epoch, with everything that happens
between its first and its last hook, and without compilation. Repetitions are interleaved.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from seqrun.benchmarks import RotatedMNIST
from seqrun.callbacks import BaseCallback, MetricCallback, TqdmCallback
from seqrun.loggers import ConsoleLogger, LocalLogger

BATCH, WIDTH, LR = 10, 256, 0.01


class EpochTimer(BaseCallback):
    """Take the seconds of an epoch, less compilation."""

    def on_before_epoch(self, algorithm):
        """Start the clock."""
        self.compiled = algorithm.timing["compile_seconds"]
        self.started = time.perf_counter()

    def on_after_epoch(self, algorithm):
        """Stop the clock."""
        compiled = algorithm.timing["compile_seconds"] - self.compiled
        self.seconds = time.perf_counter() - self.started - compiled


def seqrun_rate(algo: str, backend: str, threads: int) -> tuple[float, dict]:
    """Train one task; return steps per second and the seconds of the phases."""
    algorithm_class = {"naive": "Naive", "ewc": "EWC"}[algo]
    twin = importlib.import_module(f"seqrun.algorithms.{algo}.{backend}")
    backbones = importlib.import_module(f"seqrun.backbones.{backend}")
    optimizers = importlib.import_module(f"seqrun.optimizers.{backend}")
    timer = EpochTimer()
    with tempfile.TemporaryDirectory() as folder:
        algorithm = getattr(twin, algorithm_class)(
            benchmark=RotatedMNIST(num_tasks=1, batch_size=BATCH),
            backbone=backbones.MLP(width=WIDTH),
            optimizer=optimizers.SGD(lr=LR),
            callbacks=[timer, MetricCallback(), TqdmCallback()],
            loggers=[ConsoleLogger(), LocalLogger(figures=False)],
            num_threads=threads,
            run_dir=Path(folder),
        )
        algorithm.fit()
    return algorithm.global_step / timer.seconds, algorithm.timing


def task_one() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W1's first task as float32 inputs, labels and one epoch's batches."""
    from seqrun.plan import RandomStreams

    benchmark = RotatedMNIST(num_tasks=1, batch_size=BATCH)
    benchmark.prepare(RandomStreams(0))
    data = benchmark.task_data(1, "train")
    x = data.x.reshape(len(data.y), -1).astype(np.float32) / 255
    return x, data.y, np.random.default_rng(0).permutation(len(x)).reshape(-1, BATCH)


class HandTorch:
    """nn.Sequential and torch.optim.SGD over sliced tensors."""

    def __init__(self, threads: int) -> None:
        import torch

        self.torch, self.threads = torch, threads
        x, y, order = task_one()
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


class HandJax:
    """One jit(lax.scan) over the whole epoch, data on the device."""

    def __init__(self, threads: int) -> None:
        import jax
        import jax.numpy as jnp

        x, y, order = task_one()
        self.jax, self.data = jax, (jnp.asarray(x), jnp.asarray(y), jnp.asarray(order))
        rng = np.random.default_rng(0)
        sizes = (784, WIDTH, WIDTH, 10)
        self.params = [
            (jnp.asarray(rng.normal(0, i**-0.5, (i, o)), jnp.float32), jnp.zeros(o))
            for i, o in zip(sizes, sizes[1:], strict=False)
        ]

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


def main() -> None:
    """Measure and write one JSON object to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=("torch", "jax"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    backend, threads = arguments.backend, arguments.threads
    rates: dict[str, list[float]] = {"hand": [], "naive": [], "ewc": []}
    fisher = []
    stdout, sys.stdout = sys.stdout, sys.stderr  # the console logger's tables are not the result
    seqrun_rate("naive", backend, threads)  # sets jax's threads before anything else uses it
    hand = (HandTorch if backend == "torch" else HandJax)(threads)
    for _ in range(arguments.repetitions):
        rates["hand"].append(hand.rate())
        rates["naive"].append(seqrun_rate("naive", backend, threads)[0])
        rate, timing = seqrun_rate("ewc", backend, threads)
        rates["ewc"].append(rate)
        fisher.append(timing["importance_seconds"])
    json.dump({"rates": rates, "fisher_seconds": fisher}, stdout)


if __name__ == "__main__":
    main()

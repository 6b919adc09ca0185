"""Steps per second of ResNet18Thin's training on one backend, beside hand-written minimal loops.

ResNet18Thin: batch 10, 32 x 32 x 3 random images, SGD lr 0.01. seqrun runs with metrics,
progress bar, console and local files; what is timed is an epoch, with everything that happens
between its first and its last hook, and without compilation. After each epoch comes one of each
hand-written loop.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from commands import quiet

from seqrun.algorithms.base import TrainingOptions
from seqrun.benchmarks import BaseBenchmark, Dataset
from seqrun.callbacks import BaseCallback, MetricCallback, TqdmCallback
from seqrun.loggers import ConsoleLogger, LocalLogger

BATCH, CLASSES, SIDE, NF, LR = 10, 10, 32, 20, 0.01
STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)


@dataclass(kw_only=True, eq=False)
class RandomImages(BaseBenchmark):
    """Tasks of noise."""

    num_tasks: int = 1
    batch_size: int = BATCH
    size: int = 1000

    name = "random_images"

    def prepare_datasets(self):
        """Draw uint8 images and labels."""

        def draw(size, t):
            rng = np.random.default_rng(size)
            x = rng.integers(0, 256, (size, SIDE, SIDE, 3), np.uint8)
            return Dataset.of_task(x, rng.integers(0, CLASSES, size).astype(np.int32), t)

        tasks = range(1, self.num_tasks + 1)
        return {t: draw(self.size, t) for t in tasks}, {t: draw(100, t) for t in tasks}


class EpochTimer(BaseCallback):
    """Take an epoch's steps per second, less compilation, then those of hand-written loops.

    Args:
        make_hands: name -> what makes a loop with a method `rate`.
    """

    def __init__(self, make_hands):
        self.make_hands, self.hands = make_hands, {}
        self.rates = {name: [] for name in ("seqrun", *make_hands)}

    def on_before_epoch(self, run):
        """Start the clock."""
        self.compiled = run.progress.timing["compile_seconds"]
        self.step, self.started = run.step, time.perf_counter()

    def on_after_epoch(self, run):
        """Stop the clock and let the other run."""
        compiled = run.progress.timing["compile_seconds"] - self.compiled
        seconds = time.perf_counter() - self.started - compiled
        self.hands = self.hands or {name: make() for name, make in self.make_hands.items()}
        rates = {"seqrun": (run.step - self.step) / seconds}
        rates |= {name: hand.rate() for name, hand in self.hands.items()}
        if run.epoch > 1:  # the first warms up
            for name, rate in rates.items():
                self.rates[name].append(rate)


def epoch(steps):
    """Return float32 NHWC inputs, labels and one epoch's batches."""
    data = RandomImages(size=steps * BATCH).prepare_datasets()[0][1]
    order = np.random.default_rng(0).permutation(len(data.y)).reshape(-1, BATCH)
    return data.x.astype(np.float32) / 255, data.y, order


class HandTorch:
    """nn.Module and torch.optim.SGD over sliced tensors.

    Args:
        steps: of an epoch.
        channels_last: memory format of images and kernels; False = NCHW.
        compiled: whether the network is.
    """

    def __init__(self, steps: int, *, channels_last: bool, compiled: bool) -> None:
        import torch

        self.torch = torch
        x, y, order = epoch(steps)
        self.x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
        self.y, self.order = torch.from_numpy(y).long(), torch.from_numpy(order)
        self.model = _torch_resnet()
        if channels_last:
            self.x = self.x.contiguous(memory_format=torch.channels_last)
            self.model = self.model.to(memory_format=torch.channels_last)
        if compiled:
            self.model = torch.compile(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)

    def rate(self) -> float:
        """Train an epoch; return steps per second."""
        cross_entropy = self.torch.nn.functional.cross_entropy
        started = time.perf_counter()
        for index in self.order:
            loss = cross_entropy(self.model(self.x[index]), self.y[index])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return len(self.order) / (time.perf_counter() - started)


def _torch_resnet():
    from torch import nn

    def convolution(channels_in, channels, side, stride):
        conv = nn.Conv2d(channels_in, channels, side, stride, side // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(channels))

    class Block(nn.Module):
        def __init__(self, channels_in, channels, stride):
            super().__init__()
            self.first = convolution(channels_in, channels, 3, stride)
            self.second = convolution(channels, channels, 3, 1)
            same = stride == 1 and channels_in == channels
            self.short = None if same else convolution(channels_in, channels, 1, stride)

        def forward(self, x):
            out = self.second(self.first(x).relu())
            return (out + (x if self.short is None else self.short(x))).relu()

    layers, channels = [convolution(3, NF, 3, 1), nn.ReLU()], NF
    for i, stride in enumerate(STRIDES):
        layers.append(Block(channels, NF * 2 ** (i // 2), stride))
        channels = NF * 2 ** (i // 2)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(channels, CLASSES))


class HandJax:
    """One jitted step with donated weights, called in a loop, data on the device."""

    def __init__(self, steps: int) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        from seqrun.backbones.resnet.jax import ResNet18Thin

        module = ResNet18Thin().build((SIDE, SIDE, 3), CLASSES)
        x, y, order = epoch(steps)
        self.jax, self.data = jax, (jnp.asarray(x), jnp.asarray(y))
        self.order = [jnp.asarray(index) for index in order]
        variables = jax.jit(module.init)(jax.random.key(0), x[:2])
        self.weights = variables["params"], variables["batch_stats"]

        def loss(params, stats, x, y):
            variables = {"params": params, "batch_stats": stats}
            logits, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), moved["batch_stats"]

        def step(weights, data, index):
            params, stats = weights
            take = jax.value_and_grad(loss, has_aux=True)
            (value, stats), gradient = take(params, stats, data[0][index], data[1][index])
            return (jax.tree.map(lambda p, g: p - LR * g, params, gradient), stats), value

        args = self.weights, self.data, self.order[0]
        self.step = jax.jit(step, donate_argnums=0).lower(*args).compile()

    def rate(self) -> float:
        """Train an epoch; return steps per second."""
        started = time.perf_counter()
        for index in self.order:
            self.weights, value = self.step(self.weights, self.data, index)
        self.jax.block_until_ready((self.weights, value))
        return len(self.order) / (time.perf_counter() - started)


def measure(
    backend: str, threads: int | None, steps: int, repetitions: int, *, compiled: bool
) -> dict:
    """Train on one task; return rates and how the run was executed.

    Args:
        backend: "torch" or "jax".
        threads: of a run; None = by seqrun's rule.
        steps: of a repetition.
        repetitions: how often.
        compiled: whether torch's networks are, by hand and in seqrun.
    """
    twin = importlib.import_module(f"seqrun.algorithms.naive.{backend}")
    backbones = importlib.import_module(f"seqrun.backbones.resnet.{backend}")
    optimizers = importlib.import_module(f"seqrun.optimizers.{backend}")
    hands = {"": partial(HandJax, steps)}
    if backend == "torch":
        hands = {
            layout: partial(HandTorch, steps, channels_last=last, compiled=compiled)
            for layout, last in (("NCHW", False), ("channels last", True))
        }
    timer = EpochTimer(hands)
    with tempfile.TemporaryDirectory() as folder:
        algorithm = twin.Naive(
            benchmark=RandomImages(size=steps * BATCH),
            backbone=backbones.ResNet18Thin(nf=NF),
            optimizer=optimizers.SGD(lr=LR),
            training=TrainingOptions(
                epochs_per_task=repetitions + 1, compile="always" if compiled else "never"
            ),
            callbacks=[timer, MetricCallback(), TqdmCallback()],
            loggers=[ConsoleLogger(), LocalLogger(figures=False)],
            device="cpu",
            num_threads=threads,
            run_dir=Path(folder),
        )
        with quiet(f"convolution: {backend}{', network compiled' if compiled else ''}"):
            algorithm.fit()
    return {"rates": timer.rates, "execution": algorithm.engine.execution}


def main() -> None:
    """Measure and write one JSON object to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=("torch", "jax"))
    parser.add_argument("--threads", type=int, help="default: seqrun's rule")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="of a repetition")
    parser.add_argument("--compiled", action="store_true", help="torch's networks")
    asked = parser.parse_args()
    measured = measure(
        asked.backend, asked.threads, asked.steps, asked.repetitions, compiled=asked.compiled
    )
    sys.stdout.write(json.dumps(measured))


if __name__ == "__main__":
    main()

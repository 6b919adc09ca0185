"""What a program is given of a run of the product, and the comparison of both at the end.

Given are the plan's arrays, the data and the initial weights: nothing that a gradient has touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from experiments import build
from independent_programs.network import (
    MOMENTUM,
    SGD,
    Adam,
    Arrays,
    Pass,
    clipped,
    d_cross_entropy,
    forward,
)

from seqrun.benchmarks import Dataset
from seqrun.callbacks import BaseCallback
from seqrun.plan import Chunk, RandomStreams
from seqrun.training.callback import Run

TOLERANCE = 1e-5

# 4 steps an epoch: few shapes, so that JAX compiles few programs.
DOMAIN = {
    "benchmark": "permuted_digits",
    "stream": {"num_tasks": 3, "samples_per_task": 40, "batch_size": 10},
}
CLASS = {
    "benchmark": "split_digits",
    "stream": {
        "num_tasks": 3,
        "classes_per_task": [4, 3, 3],
        "class_order": "random",
        "samples_per_task": 40,
        "batch_size": 10,
        "scenario": "class",
    },
}
OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01},
    # Where a gradient is zero, Adam turns what rounding leaves of it into full steps ...
    "adam": {"lr": 0.01},
    # ... unless weight decay is larger than that.
    "adam_decay": {"lr": 0.01, "weight_decay": 0.01},
}

EVERY = [("torch", "sgd"), ("torch", "adam"), ("jax", "sgd"), ("jax", "adam")]

# JAX compiles for seconds, and tests/parity holds it to PyTorch anyway.
on_both = pytest.mark.parametrize(
    ("backend", "optimizer"),
    [pytest.param(b, o, marks=[pytest.mark.full] if b == "jax" else []) for b, o in EVERY],
)
on_both_by_default = pytest.mark.parametrize(
    ("backend", "optimizer"),
    [
        pytest.param(*names, marks=[pytest.mark.full] if names == ("jax", "sgd") else [])
        for names in EVERY
    ],
)


def inputs(x: np.ndarray) -> np.ndarray:
    """Return (N, F) network inputs of stored images."""
    return x.reshape(len(x), x[:1].size) / 255.0


@dataclass
class Step:
    """A training step.

    Attributes:
        x, y: the batch, (B, F) and (B,).
        rows: the plan's arrays: "index", "replay_slot", "write_slot", ...
        epoch: 1-based.
    """

    x: np.ndarray
    y: np.ndarray
    rows: Arrays
    epoch: int


@dataclass
class Task:
    """A task of the stream.

    Attributes:
        number: 1-based.
        x, y: its training data.
        pool_x, pool_y, pool_t: what "index" and "replay" are rows of.
        steps: of all epochs.
        stored_x, stored_y, stored_t: memory after the task; empty without one.
        allowed: (C,) classes of the softmax; None = all.
    """

    number: int
    x: np.ndarray
    y: np.ndarray
    pool_x: np.ndarray
    pool_y: np.ndarray
    pool_t: np.ndarray
    steps: list[Step] = field(default_factory=list)
    stored_x: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    stored_y: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    stored_t: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    allowed: np.ndarray | None = None


@dataclass
class PlanRecorder(BaseCallback):
    """Keep what the product planned; being no step hook, it leaves JAX's chunks compiled.

    Attributes:
        tasks: of the run.
    """

    tasks: list[Task] = field(default_factory=list)

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Keep the chunk's steps."""
        if not self.tasks or self.tasks[-1].number != chunk.task:
            self._start(run, chunk.task)
        task = self.tasks[-1]
        for s in range(chunk.steps):
            rows = {name: np.array(a[s]) for name, a in chunk.arrays.items()}
            x, y = task.pool_x[rows["index"]], task.pool_y[rows["index"]]
            task.steps.append(Step(x, y, rows, chunk.epoch))

    def _start(self, run: Run, number: int) -> None:
        algorithm = run.algorithm
        pool, size = algorithm.replay_dataset, algorithm.num_current
        x, y, mask = inputs(pool.x), pool.y, algorithm.benchmark.class_mask
        self.tasks.append(Task(number, x[:size], y[:size], x, y, pool.t))
        if mask is not None:
            self.tasks[-1].allowed = np.logical_or.reduce(mask[:number])

    def on_after_task(self, run: Run) -> None:
        """Keep the memory."""
        memory = getattr(run.algorithm, "memory", None)
        if memory is not None and memory.data is not None:
            kept, task = memory.data, self.tasks[-1]
            task.stored_x, task.stored_y, task.stored_t = inputs(kept.x), kept.y, kept.t


@dataclass
class Product:
    """A finished run.

    Attributes:
        tasks: what was planned.
        initial: weights before training.
        tests: test data of each task.
        random: the run's streams.
        arrays: what the run carries at its end.
        matrix: (T+1, T) accuracies.
    """

    tasks: list[Task]
    initial: Arrays
    tests: list[Dataset]
    random: RandomStreams
    arrays: Arrays
    matrix: np.ndarray


def product(
    algo: str,
    backend: str,
    optimizer: str,
    *,
    optimizer_options: Mapping[str, float] | None = None,
    backbone: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Product:
    """Run the product.

    Args:
        algo, backend: which.
        optimizer: of OPTIMIZERS; `optimizer_options` are added.
        backbone: added to two layers of 8 units.
        training: added to two epochs a task, at whose end all tasks are measured.
        spec: as `build` takes it.
    """
    keys = DOMAIN | spec
    keys["optimizer"] = optimizer.removesuffix("_decay")
    keys["optimizer_options"] = OPTIMIZERS[optimizer] | dict(optimizer_options or {})
    keys["backbone"] = {"width": 8} | dict(backbone or {})
    keys["training"] = {"epochs_per_task": 2, "evaluate_on": "all"} | dict(training or {})
    plan = PlanRecorder()
    algorithm = build(algo, backend, callbacks=[plan], **keys)
    algorithm.fit()
    benchmark = algorithm.benchmark
    initial = {n: a.astype(np.float64) for n, a in algorithm.initial_weights().items()}
    tests = [benchmark.task_data(t, "test") for t in range(1, benchmark.num_tasks + 1)]
    arrays, matrix = algorithm.export_arrays(), algorithm.accuracy_matrix
    return Product(plan.tasks, initial, tests, algorithm.random, arrays, matrix)


class Learner:
    """A network in training: weights, running statistics, optimizer and accuracy matrix."""

    def __init__(self, run: Product, optimizer: SGD | Adam, grad_clip: float | None = None) -> None:
        self.run, self.optimizer, self.grad_clip = run, optimizer, grad_clip
        self.w = dict(run.initial)
        means = {n for n in self.w if n.startswith("norm_")}
        self.stats = {n.replace("bias", "mean"): 0 * self.w[n] for n in means if "bias" in n}
        self.stats |= {n.replace("scale", "var"): 1 + 0 * self.w[n] for n in means if "scale" in n}
        self.matrix = np.full(run.matrix.shape, np.nan)
        self.matrix[0] = [self.accuracy(t, None) for t in range(len(run.tests))]

    def forward(self, x: np.ndarray) -> Pass:
        """Run a batch through the network in train mode, which moves the running statistics."""
        p = forward(self.w, x)
        for name, value in p.moments.items():
            self.stats[name] = (1 - MOMENTUM) * self.stats[name] + MOMENTUM * value
        return p

    def gradient(self, x: np.ndarray, y: np.ndarray, task: Task) -> Arrays:
        """Return the gradient of a batch's mean cross-entropy."""
        p = self.forward(x)
        return p.gradient(d_cross_entropy(p.logits, y, task.allowed))

    def step(self, g: Arrays) -> None:
        """Clip the gradient and let the optimizer move the weights."""
        self.w = self.optimizer(self.w, clipped(g, self.grad_clip))

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Return the (N, C) numbers of which a prediction is the largest."""
        return forward(self.w, x, self.stats).logits

    def accuracy(self, test: int, allowed: np.ndarray | None) -> float:
        """Return the share of a task's test data that is classified right."""
        data = self.run.tests[test]
        scores = self.scores(inputs(data.x))
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        return float((scores.argmax(1) == data.y).mean())

    def measure(self, task: Task) -> None:
        """Fill the matrix's row of a task that has ended."""
        tests = range(len(self.run.tests))
        self.matrix[task.number] = [self.accuracy(t, task.allowed) for t in tests]


Program = Callable[..., Arrays]
"""(learner, **options) -> the algorithm's arrays by the names that the product exports."""


def compare(
    program: Program,
    run: Product,
    optimizer: str,
    *,
    learner: type[Learner] = Learner,
    optimizer_options: Mapping[str, float] | None = None,
    grad_clip: float | None = None,
    result: str = "params/",
    **options: Any,
) -> Learner:
    """Run the program on the product's plan; raise AssertionError unless both end alike.

    Parameters, statistics and the algorithm's state to the tolerance, absolute plus relative;
    accuracies exactly. And the method must have had an effect: naive training ends elsewhere than
    `result` does.
    """
    rule = SGD if optimizer == "sgd" else Adam
    keys = OPTIMIZERS[optimizer] | dict(optimizer_options or {})
    trained = learner(run, rule(**keys), grad_clip)
    wanted = program(trained, **options)
    wanted |= {f"params/{n}": a for n, a in trained.w.items()}
    wanted |= {f"stats/{n}": a for n, a in trained.stats.items()}
    actual = run.arrays | {"memory/x": inputs(run.arrays.get("memory/x", np.zeros((0, 0))))}
    for name, value in wanted.items():
        np.testing.assert_allclose(
            actual[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )
    np.testing.assert_array_equal(run.matrix, trained.matrix)
    if "classifier/kernel" in trained.w:
        plain = Learner(run, rule(**keys), grad_clip)
        naive(plain)
        moved = max(abs(a - wanted[result + n]).max() for n, a in plain.w.items())
        assert moved > 1000 * TOLERANCE, f"naive training ends within {moved}"
    return trained


def naive(learner: Learner) -> Arrays:
    """Train on each task in turn."""
    for task in learner.run.tasks:
        learner.optimizer.start()
        for step in task.steps:
            own = step.rows["index"] < len(task.y)
            if own.any():
                learner.step(learner.gradient(step.x[own], step.y[own], task))
        learner.measure(task)
    return {}

"""Replay methods on a softmax regression, in NumPy and float64, with the plan of a real run.

The plan, which tests/memory checks, says which slots are read and written. The memory here is
really written, so a run that reads other samples differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from experiments import LossRecorder, StepRecorder, component
from tiny import Linear, TinyBenchmark, cross_entropies, sample_gradients

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.backbones import draw_initial_weights
from seqrun.benchmarks import Dataset
from seqrun.callbacks import BaseCallback
from seqrun.plan import Chunk
from seqrun.training.callback import Run

Arrays = dict[str, np.ndarray]
KERNEL, BIAS = "classifier/kernel", "classifier/bias"
LR = 0.5

# With few shapes JAX compiles few programs; tests/parity has partial batches.
SETTING: dict[str, Any] = {
    "benchmark": "split_digits",
    "stream": {"scenario": "class", "samples_per_task": 40},
    "optimizer_options": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01},
    "training": {"epochs_per_task": 2, "grad_clip": 1.0},
}
FIRST_TASK = slice(0, 8)  # its steps


@dataclass
class PlanRecorder(BaseCallback):
    """Record the plan of every step, and the replay dataset that it points into.

    Attributes:
        rows: one dictionary of plan arrays per step.
        datasets: the replay dataset of each step.
        tasks: the task (1-based) of each step.
    """

    rows: list[Arrays] = field(default_factory=list)
    datasets: list[Dataset] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Record the steps of the chunk."""
        for s in range(chunk.steps):
            self.rows.append({name: a[s] for name, a in chunk.arrays.items()})
            self.datasets.append(run.algorithm.replay_dataset)
            self.tasks.append(chunk.task)


@dataclass
class TinyRun:
    """A run on the softmax regression.

    Attributes:
        algorithm: after `fit`.
        plan: see PlanRecorder.
        losses: task loss of every step.
        steps: see StepRecorder; on JAX only the last step, so that chunks stay compiled.
    """

    algorithm: BaseAlgorithm
    plan: PlanRecorder
    losses: np.ndarray
    steps: dict[int, Arrays]


def tiny_run(algo: str, backend: str, **options: Any) -> TinyRun:
    """Train the softmax regression for two epochs on each of three tasks."""
    make, keys = component("algo", algo, backend)
    make_optimizer, optimizer_keys = component("optimizer", "sgd", backend)
    plan, losses, steps = PlanRecorder(), LossRecorder(), StepRecorder()
    algorithm = make(
        benchmark=TinyBenchmark(size=6),
        backbone=Linear(backend=backend),
        optimizer=make_optimizer(**optimizer_keys | {"lr": LR}),
        training=TrainingOptions(epochs_per_task=2),
        callbacks=[plan, losses, steps] if backend == "torch" else [plan, losses],
        device="cpu",
        **keys | options,
    )
    algorithm.fit()
    recorded = dict(enumerate(steps.steps)) or {len(plan.rows) - 1: algorithm.export_arrays()}
    return TinyRun(algorithm, plan, np.concatenate(losses.losses), recorded)


@dataclass
class HandStep:
    """What the gradient of a method may depend on.

    Attributes:
        w: parameters.
        batch: inputs (B, 2) and labels (B,) of the current batch.
        batches: name -> inputs, labels and stored logits of a memory batch.
        gradient: gradient of the mean cross-entropy on the current batch.
        task: 1-based.
    """

    w: Arrays
    batch: tuple[np.ndarray, np.ndarray]
    batches: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    gradient: Arrays
    task: int


def inputs_of(data: Dataset) -> np.ndarray:
    """Return the (N, 2) network inputs."""
    return data.x.reshape(len(data.y), -1) / 255.0


def mean_gradient(w: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """Return the gradient of the mean cross-entropy."""
    return {n: g.mean(0) for n, g in sample_gradients(w[KERNEL], w[BIAS], x, y).items()}


def mean_loss(w: Arrays, x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean cross-entropy."""
    return float(cross_entropies(w[KERNEL], w[BIAS], x, y).mean())


def assert_steps_as_by_hand(
    trace: TinyRun,
    rule: Callable[[HandStep], tuple[float, Arrays]],
    reads: tuple[str, ...] = ("replay",),
) -> None:
    """Raise AssertionError unless the run has the losses and parameters that `rule` implies.

    Args:
        trace: the run.
        rule: HandStep -> the step's task loss, and the gradient for the optimizer.
        reads: names of the memory batches that are read.
    """
    algorithm = trace.algorithm
    shapes = {KERNEL: (2, 3), BIAS: (3,)}
    drawn = draw_initial_weights(shapes, "torch_default", algorithm.random)
    w = {n: a.astype(np.float64) for n, a in drawn.items()}
    memory: dict[int, tuple[np.ndarray, int, np.ndarray]] = {}  # slot -> x, y, logits
    plans = zip(trace.plan.rows, trace.plan.datasets, trace.plan.tasks, strict=True)
    for number, (row, dataset, task) in enumerate(plans):
        x, y = inputs_of(dataset), dataset.y
        index = row["index"]
        found = {}
        for name in reads:
            if "write_slot" in row:
                stored = [memory[int(slot)] for slot in row[f"{name}_slot"]]
                mx = np.array([sample[0] for sample in stored]).reshape(-1, 2)
                my = np.array([sample[1] for sample in stored], int)
                mz = np.array([sample[2] for sample in stored]).reshape(-1, 3)
            else:
                assert (dataset.t[row[name]] < task - 1).all()
                mx, my, mz = x[row[name]], y[row[name]], np.empty((0, 3))
            found[name] = mx, my, mz
        batch = x[index], y[index]
        step = HandStep(w, batch, found, mean_gradient(w, *batch), task)
        loss, gradient = rule(step)
        logits = batch[0] @ w[KERNEL] + w[BIAS]
        w = {n: w[n] - LR * gradient[n] for n in w}
        for sample, slot in enumerate(row.get("write_slot", ())):
            memory[int(slot)] = batch[0][sample], int(batch[1][sample]), logits[sample]
        memory.pop(getattr(algorithm, "memory_size", -1), None)  # not stored
        np.testing.assert_allclose(trace.losses[number], loss, rtol=1e-5, err_msg=f"step {number}")
        recorded = trace.steps.get(number, {})
        expected = {f"params/{name}": value for name, value in w.items()}
        expected |= {"state/logits": np.array([memory[slot][2] for slot in sorted(memory)])}
        for name in expected.keys() & recorded.keys():
            actual = recorded[name][: len(expected[name])]
            where = f"step {number}: {name}"
            np.testing.assert_allclose(actual, expected[name], rtol=1e-5, atol=1e-5, err_msg=where)
    assert recorded

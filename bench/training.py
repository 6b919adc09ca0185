"""Steps per second of W1's training on one backend, beside hand-written minimal loops.

W1: Rotated MNIST, 60,000 samples a task, batch 10, MLP 784-256-256-10, SGD lr 0.01. seqrun runs
with its default callbacks and loggers; what is timed is one epoch, with everything that happens
between its first and its last hook, and without compilation: that of the first task for naive, of
the second, where there are a penalty and a memory, for the others. Repetitions are interleaved.
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
from hand import BATCH, LR, WIDTH, HandJax, HandTorch, HandTorchCompiled

from seqrun.algorithms.base import TrainingOptions
from seqrun.benchmarks import RotatedMNIST
from seqrun.callbacks import BaseCallback, MetricCallback, TqdmCallback
from seqrun.loggers import ConsoleLogger, LocalLogger

ALGORITHMS = {
    "naive": ("Naive", {}),
    "ewc": ("EWC", {}),
    "er": ("ER", {"memory_size": 1000, "memory_batch_size": 10}),
    "agem": ("AGEM", {"per_task_memory_samples": 250, "memory_batch_size": 256}),
}
COMPILED = " compiled"
HAND = {
    "torch": {"hand": HandTorch, f"hand{COMPILED}": HandTorchCompiled},
    "jax": {"hand": HandJax},
}


class EpochTimer(BaseCallback):
    """Take the steps per second of the last epoch, less compilation."""

    def on_before_epoch(self, algorithm):
        """Start the clock."""
        self.compiled = algorithm.timing["compile_seconds"]
        self.step, self.started = algorithm.global_step, time.perf_counter()

    def on_after_epoch(self, algorithm):
        """Stop the clock."""
        compiled = algorithm.timing["compile_seconds"] - self.compiled
        seconds = time.perf_counter() - self.started - compiled
        self.rate = (algorithm.global_step - self.step) / seconds


def seqrun_rate(
    name: str, backend: str, threads: int | None, samples: int | None
) -> tuple[float, dict, dict]:
    """Train one or two tasks; return steps per second, seconds of the phases and `execution`.

    Args:
        name: an algorithm; " compiled" after it: training.compile=always.
        backend: "torch" or "jax".
        threads: None = by seqrun's rule.
        samples: of a task; None = all.
    """
    algo = name.removesuffix(COMPILED)
    class_name, keys = ALGORITHMS[algo]
    twin = importlib.import_module(f"seqrun.algorithms.{algo}.{backend}")
    backbones = importlib.import_module(f"seqrun.backbones.{backend}")
    optimizers = importlib.import_module(f"seqrun.optimizers.{backend}")
    timer = EpochTimer()
    num_tasks = 1 if algo == "naive" else 2
    compiling = "always" if name.endswith(COMPILED) else "never"
    with tempfile.TemporaryDirectory() as folder:
        algorithm = getattr(twin, class_name)(
            benchmark=RotatedMNIST(
                num_tasks=num_tasks, batch_size=BATCH, samples_per_task=samples
            ),
            backbone=backbones.MLP(width=WIDTH),
            optimizer=optimizers.SGD(lr=LR),
            training=TrainingOptions(compile=compiling),
            callbacks=[timer, MetricCallback(), TqdmCallback()],
            loggers=[ConsoleLogger(), LocalLogger(figures=False)],
            device="cpu",
            num_threads=threads,
            run_dir=Path(folder),
            **keys,
        )
        algorithm.fit()
    return timer.rate, algorithm.timing, algorithm.execution


class EvaluationTimer(BaseCallback):
    """Take the seconds of the last row of the accuracy matrix, less compilation."""

    def on_before_validation(self, algorithm):
        """Remember what the rows before took."""
        self.before = algorithm.timing["eval_seconds"]

    def on_after_validation(self, algorithm):
        """Take the difference."""
        self.seconds = algorithm.timing["eval_seconds"] - self.before


def evaluation_seconds(backend: str, threads: int | None) -> float:
    """Return the seconds that evaluating 20 tasks of 10,000 images takes after the last of them."""
    timer = EvaluationTimer()
    algorithm = importlib.import_module(f"seqrun.algorithms.naive.{backend}").Naive(
        benchmark=RotatedMNIST(num_tasks=20, batch_size=BATCH, samples_per_task=BATCH),
        backbone=importlib.import_module(f"seqrun.backbones.{backend}").MLP(width=WIDTH),
        optimizer=importlib.import_module(f"seqrun.optimizers.{backend}").SGD(lr=LR),
        callbacks=[timer],
        device="cpu",
        num_threads=threads,
    )
    algorithm.fit()
    assert not np.isnan(algorithm.accuracy_matrix[-1]).any()
    return timer.seconds


def main() -> None:
    """Measure and write one JSON object to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=tuple(HAND))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rates", help="names with commas between; default: all of the backend")
    parser.add_argument("--samples", type=int, help="of a task; default: all")
    asked = parser.parse_args()
    backend, threads, samples = asked.backend, asked.threads, asked.samples
    variants = ("", COMPILED) if backend == "torch" else ("",)
    every = [*HAND[backend], *(f"{algo}{v}" for algo in ALGORITHMS for v in variants)]
    names = asked.rates.split(",") if asked.rates else every
    rates: dict[str, list[float]] = {name: [] for name in names}
    fisher, evaluation, execution = [], [], {}
    stdout, sys.stdout = sys.stdout, sys.stderr  # the console logger's tables are not the result
    seqrun_rate("naive", backend, threads, samples)  # sets jax's threads before anything uses it
    hands = {n: make(threads, samples) for n, make in HAND[backend].items() if n in names}
    for _ in range(asked.repetitions):
        for name in names:
            if name in hands:
                rates[name].append(hands[name].rate())
                continue
            rate, timing, execution[name] = seqrun_rate(name, backend, threads, samples)
            rates[name].append(rate)
            if name == "ewc":  # the mean of its two tasks
                fisher.append(timing["importance_seconds"] / 2)
                evaluation.append(evaluation_seconds(backend, threads))
    seconds = {"fisher_seconds": fisher, "evaluation_seconds": evaluation}
    json.dump({"rates": rates, **seconds, "execution": execution}, stdout)


if __name__ == "__main__":
    main()

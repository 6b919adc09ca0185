"""Steps per second on Rotated MNIST of one backend, beside hand-written loops and a roofline.

Rotated MNIST: 60,000 samples a task, batch 10, MLP 784-256-256-10, SGD lr 0.01. seqrun runs
with metrics, progress bar, console and local files; what is timed is one epoch, with everything
that happens between its first and its last hook (checkpoints and figures come after it), and
without compilation: that of the first task for naive, of the second, where there are a penalty and
a memory, for the others. Repetitions are interleaved. The rooflines (bench/roofline.py) are a
CPU's.
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
from commands import quiet
from hand_written import HandJax, HandTorch, HandTorchCompiled
from roofline import Roofline, measure, update_bytes
from rotated_mnist_mlp import BATCH, LR, SIZES, WIDTH, Setting, add_setting, setting_of

from seqrun.algorithms.base import TrainingOptions
from seqrun.callbacks import BaseCallback, MetricCallback, TqdmCallback
from seqrun.loggers import ConsoleLogger, LocalLogger
from seqrun.training.engine.threads import default_num_threads

ALGORITHMS = {
    "naive": ("Naive", {}),
    "ewc": ("EWC", {}),
    "er": ("ER", {"memory_size": 1000, "memory_batch_size": 10}),
    "agem": ("AGEM", {"per_task_memory_samples": 250, "memory_batch_size": 256}),
}
COMPILED = " compiled"
HAND = {
    "torch": {"hand_written": HandTorch, f"hand_written{COMPILED}": HandTorchCompiled},
    "jax": {"hand_written": HandJax},
}
ROOFLINE = "roofline"
ROOFLINES = {ROOFLINE: ("naive", (BATCH,)), f"{ROOFLINE} agem": ("agem", (BATCH, 250))}
"""Of which algorithm's step, and the batches that it passes over; in task 2 memory holds 250."""
EVALUATED = 20
"""Tasks that are evaluated."""


def names_of(backend: str, device: str) -> list[str]:
    """Return what is measured: the roofline, hand-written loops and seqrun's algorithms."""
    variants = ("", COMPILED) if backend == "torch" else ("",)
    ours = [f"{algo}{v}" for algo in ALGORITHMS for v in variants]
    return [*(ROOFLINES if device == "cpu" else []), *HAND[backend], *ours]


def threads_of(name: str, device: str) -> int:
    """Return the CPU threads that a run of seqrun's, or its roofline, has by seqrun's rule."""
    algo = ROOFLINES[name][0] if name in ROOFLINES else name.removesuffix(COMPILED)
    _, keys = ALGORITHMS.get(algo, ("", {}))
    samples = BATCH + keys.get("memory_batch_size", 0)
    per_sample = sum(i * o for i, o in zip(SIZES, SIZES[1:], strict=False))
    return default_num_threads(per_sample * samples) if device == "cpu" else 1


class EpochTimer(BaseCallback):
    """Take the steps per second of the last epoch, less compilation."""

    def on_before_epoch(self, run):
        """Start the clock."""
        self.compiled = run.progress.timing["compile_seconds"]
        self.step, self.started = run.step, time.perf_counter()

    def on_after_epoch(self, run):
        """Stop the clock."""
        compiled = run.progress.timing["compile_seconds"] - self.compiled
        seconds = time.perf_counter() - self.started - compiled
        self.rate = (run.step - self.step) / seconds


def seqrun_rate(name: str, backend: str, setting: Setting) -> tuple[float, dict, dict]:
    """Train one or two tasks; return steps per second, seconds of the phases and `execution`.

    Args:
        name: an algorithm; " compiled" after it: training.compile=always.
        backend: "torch" or "jax".
        setting: the data and the device.
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
            benchmark=setting.stream(num_tasks),
            backbone=backbones.MLP(width=WIDTH),
            optimizer=optimizers.SGD(lr=LR),
            training=TrainingOptions(compile=compiling),
            callbacks=[timer, MetricCallback(), TqdmCallback()],
            loggers=[ConsoleLogger(), LocalLogger(figures=False)],
            device=setting.device,
            num_threads=setting.threads,
            run_dir=Path(folder),
            **keys,
        )
        with quiet(f"training: {backend}, {name}"):
            algorithm.fit()
    return timer.rate, algorithm.progress.timing, algorithm.engine.execution


class EvaluationTimer(BaseCallback):
    """Take the seconds of the last row of the accuracy matrix, less compilation."""

    def on_before_validation(self, run):
        """Remember what the rows before took."""
        self.before = run.progress.timing["eval_seconds"]

    def on_after_validation(self, run):
        """Take the difference."""
        self.seconds = run.progress.timing["eval_seconds"] - self.before


def evaluation_seconds(backend: str, setting: Setting) -> float:
    """Return the seconds that evaluating 20 tasks takes after the last of them."""
    timer = EvaluationTimer()
    algorithm = importlib.import_module(f"seqrun.algorithms.naive.{backend}").Naive(
        benchmark=setting.stream(EVALUATED, BATCH),
        backbone=importlib.import_module(f"seqrun.backbones.{backend}").MLP(width=WIDTH),
        optimizer=importlib.import_module(f"seqrun.optimizers.{backend}").SGD(lr=LR),
        callbacks=[timer],
        device=setting.device,
        num_threads=setting.threads,
    )
    algorithm.fit()
    assert not np.isnan(algorithm.accuracy_matrix[-1]).any()
    return timer.seconds


def main() -> None:
    """Measure and write one JSON object to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=tuple(HAND))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rates", help="names with commas between; default: all of the backend")
    add_setting(parser)
    asked = parser.parse_args()
    backend, setting = asked.backend, setting_of(asked)
    names = asked.rates.split(",") if asked.rates else names_of(backend, setting.device)
    rates: dict[str, list[float]] = {name: [] for name in names}
    fisher, evaluation, execution = [], [], {}
    rooflines: dict[str, list[Roofline]] = {name: [] for name in names if name in ROOFLINES}
    seqrun_rate("naive", backend, setting)  # sets jax's threads before anything uses it
    hands = {n: make(setting) for n, make in HAND[backend].items() if n in names}
    for _ in range(asked.repetitions):
        for name in names:
            if name in rooflines:
                found = measure(ROOFLINES[name][1], SIZES, setting.threads)
                rooflines[name].append(found)
                rates[name].append(found.rate(update_bytes(SIZES)))
                continue
            if name in hands:
                rates[name].append(hands[name].rate())
                continue
            rate, timing, execution[name] = seqrun_rate(name, backend, setting)
            rates[name].append(rate)
            if name == "ewc":  # the mean of its two tasks
                fisher.append(timing["importance_seconds"] / 2)
                evaluation.append(evaluation_seconds(backend, setting))
    seconds = {"fisher_seconds": fisher, "evaluation_seconds": evaluation}
    told = {"rates": rates, **seconds, "rooflines": rooflines, "execution": execution}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()

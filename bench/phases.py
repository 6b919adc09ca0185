"""What phases beside training cost per sample, and training itself in the same run.

Rotated MNIST, two tasks, the second measured, without compilation; herding and its evaluation on
class-incremental Split MNIST, which iCaRL needs. PyTorch's steps are compiled
(training.compile=always). A phase is what passes between two of a run's events, so that nothing of
it is left out; reading the data of tasks is not in it. KCL sets a coreset aside before a task, and
makes its classifiers, by kernel regression, when it evaluates. What has "resnet" is EWC on
ResNet18Thin, with the threads that seqrun's rule gives it (two of two cores); Rotated MNIST has
one.

`python bench/phases.py BACKEND` measures one backend and prints JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from dataclasses import replace

import convolution
import numpy as np
from commands import command, quiet
from report import BACKENDS, Row, median
from rotated_mnist_mlp import LR, WIDTH, Setting, add_setting, setting_of

from seqrun.algorithms.base import TrainingOptions
from seqrun.benchmarks import BaseBenchmark
from seqrun.callbacks import BaseCallback

NUM_TASKS = 2
MOST_SAMPLES = {"kcl": 6000}
"""Of a task: KCL's steps, each with a coreset of 200 samples, are slow."""
PHASES = {
    "naive": {"evaluation": "evaluation"},
    "ewc": {"task's end": "per-sample Fisher"},
    "ewc_resnet": {"task's end": "per-sample Fisher"},
    "mas": {"task's end": "per-sample importance"},
    "kcl": {"task's start": "setting the coreset aside", "evaluation": "evaluation by kernels"},
    "icarl": {"task's end": "herding", "evaluation": "evaluation by nearest means"},
}
CONVOLVED_SAMPLES = 640
PROCESSES = [
    [algo for algo in PHASES if algo.endswith("_resnet") is of_w2] for of_w2 in (False, True)
]
"""Algorithms that are measured in one process: JAX keeps the threads that it began with."""
CLASSES = {"ewc": "EWC", "mas": "MAS", "kcl": "KCL", "icarl": "ICaRL", "naive": "Naive"}


class Laps(BaseCallback):
    """The seconds per sample of the last task's phases, less compilation."""

    def __init__(self):
        self.seconds = {}

    def on_after_validation(self, run):
        """Take the evaluation's, then read what the next task reads."""
        tested = np.isfinite(run.matrix[run.task])
        tests = [run.algorithm.benchmark.task_size(t + 1, "test") for t in np.flatnonzero(tested)]
        if run.task:
            self._take("evaluation", run, sum(tests))
        if run.task < run.algorithm.num_tasks:
            for split in ("train", "test"):
                run.algorithm.benchmark.task_data(run.task + 1, split)
        self._start(run)

    def on_before_task(self, run):
        """Take what came before the task, such as a coreset."""
        self._take("task's start", run, self._size(run))

    def on_before_epoch(self, run):
        """Start the clock."""
        self._start(run)

    def on_after_epoch(self, run):
        """Take training's."""
        self._take("training", run, self._size(run))

    def on_after_task(self, run):
        """Take what came after training."""
        self._take("task's end", run, self._size(run))

    def _size(self, run):
        return run.algorithm.benchmark.task_size(run.task, "train")

    def _start(self, run):
        self.compiled, self.since = run.progress.timing["compile_seconds"], time.perf_counter()

    def _take(self, phase, run, samples):
        compiled = run.progress.timing["compile_seconds"] - self.compiled
        self.seconds[phase] = (time.perf_counter() - self.since - compiled) / samples
        self._start(run)


def measure(algo: str, backend: str, setting: Setting) -> dict[str, float]:
    """Train on two tasks; return phase -> seconds per sample, "training" among them."""
    laps = Laps()
    algo, _, convolves = algo.partition("_")
    twin = importlib.import_module(f"seqrun.algorithms.{algo}.{backend}")
    most = CONVOLVED_SAMPLES if convolves else MOST_SAMPLES.get(algo)
    if most is not None:
        setting = replace(setting, samples=min(most, setting.samples or most))
    if convolves:
        benchmark: BaseBenchmark = convolution.RandomImages(
            num_tasks=NUM_TASKS, size=setting.samples
        )
        backbone = importlib.import_module(f"seqrun.backbones.resnet.{backend}").ResNet18Thin()
    else:
        benchmark = setting.split(NUM_TASKS) if algo == "icarl" else setting.stream(NUM_TASKS)
        backbone = importlib.import_module(f"seqrun.backbones.{backend}").MLP(width=WIDTH)
    algorithm = getattr(twin, CLASSES[algo])(
        benchmark=benchmark,
        backbone=backbone,
        optimizer=importlib.import_module(f"seqrun.optimizers.{backend}").SGD(lr=LR),
        training=TrainingOptions(compile="always"),
        callbacks=[laps],
        device=setting.device,
        num_threads=None if convolves else setting.threads,
    )
    with quiet(f"phases: {backend}, {algo}"):
        algorithm.fit()
    return {phase: laps.seconds[phase] for phase in ("training", *PHASES[algo])}


def rows(setting: Setting, repetitions: int) -> list[Row]:
    """Measure both backends, each in processes of its own."""
    told: list[Row] = []
    for backend in BACKENDS:
        how = ("--repetitions", str(repetitions), *setting.arguments())
        measured: dict[str, dict[str, list[float]]] = {}
        for algos in PROCESSES:
            these = ("--algorithms", ",".join(algos))
            measured |= json.loads(command("bench/phases.py", backend, *how, *these))
        for algo, found in measured.items():
            training = found.pop("training")
            for phase, seconds in found.items():
                over = [a / b for a, b in zip(seconds, training, strict=True)]
                whole = statistics.median(training) * 1e6
                shown = f"{median(over, 3)} of training's cost per sample, {whole:.1f} us"
                micro = [value * 1e6 for value in seconds]
                what = f"{algo}, {backend}, {PHASES[algo][phase]}, us per sample"
                told.append((what, median(micro, 2), shown))
    return told


def main() -> None:
    """Measure a backend in interleaved repetitions and write one JSON object to stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--algorithms", default=",".join(PHASES))
    add_setting(parser)
    asked = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {algo: {} for algo in asked.algorithms.split(",")}
    for _ in range(asked.repetitions):
        for algo, phases in found.items():
            for phase, seconds in measure(algo, asked.backend, setting_of(asked)).items():
                phases.setdefault(phase, []).append(seconds)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

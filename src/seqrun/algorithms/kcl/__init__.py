"""KCL: Kernel Continual Learning with variational random Fourier features.

Paper: Derakhshani et al. 2021, "Kernel continual learning", 2107.05757, equations 5 to 11.

Before a task is trained, a coreset C of its samples is set aside. The task's classifier is a kernel
ridge regression of the coreset's labels Y. With x the scaled features,
psi(x) = sqrt(2/D) cos(omega x + b) and K = psi(C) psi(C)^T,

    logits(x) = gamma_t psi(x) psi(C)^T (K + (|lambda_t| + 0.01) I)^-1 Y + beta_t,

trained with CE + tau KL(q || p). The D bases omega are drawn from q = N(mu, sigma^2), which a
network computes from the mean feature of the coreset; another computes p from the mean feature of
the batch. The logged loss is the cross-entropy. At test time the task is given, and its own
coreset, lambda_t, gamma_t, beta_t and a fixed set of bases are used.

Differs from the paper:

- Features are scaled by the range of the coreset, so that a prediction does not depend on the other
  samples of its evaluation batch (`scaling` = "authors" uses the range of each set of features, as
  the authors' code does).
- Each task is evaluated with its own bases, lambda, gamma and beta. The authors' code draws new
  bases for each test batch, and evaluates past tasks with the scalars of the current one.
- "rbf" is Gaussian; the authors' code uses the L1 distance.
- "poly" divides the products by the number of features; otherwise its regression exceeds the
  precision of float32.
- A coreset is at most half of its task.

The paper's scalar beta_t shifts all logits alike and so has no effect under a softmax.

Reduces to naive: never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.algorithms.base.memory import PREFIX
from seqrun.benchmarks import Dataset
from seqrun.checks import at_least, changed, one_of, whole
from seqrun.formulas.kernels import KERNELS, SCALINGS
from seqrun.memory.policies import class_balanced_rows
from seqrun.plan import Chunk

RIDGE = 0.01
"""Constant that is added to |lambda_t|."""


class KCLState(NamedTuple):
    """State of KCL, which is constant.

    Attributes:
        phase: (D,) b of the bases, uniform in [0, 2 pi); None unless kernel_type = "rff".
    """

    phase: Any


class Classifier(NamedTuple):
    """The classifier of a task: a kernel ridge regression on its coreset.

    Attributes:
        low, high: range of the coreset's features.
        bases, phase: (D, d) omega and (D,) b; None unless kernel_type = "rff".
        support: (N, D) Fourier features, or (N, d) scaled features, of the coreset.
        weights: (N, C) solution of the regression.
        gamma, beta: scale and offset of the logits.
    """

    low: Any
    high: Any
    bases: Any
    phase: Any
    support: Any
    weights: Any
    gamma: Any
    beta: Any


@dataclass(kw_only=True, eq=False)
class KCLOptions(BaseAlgorithm):
    """Classify each task by kernel regression on its coreset. Derakhshani et al. 2021 (2107.05757).

    The task of a test sample must be given. A task without a coreset has no classifier, so the
    accuracy matrix has entries only for the tasks so far.

    Args:
        coreset_per_class: samples of each class that are set aside before a task and not trained
            on, >= 1; all classes together at most half of the task's samples.
        num_bases: number D of random Fourier bases, >= 1.
        tau: weight of KL(q || p), >= 0; without bases it has no effect.
        kernel_type: "rff" (bases learned from the data), "rbf", "linear" or "poly".
        scaling: how features are scaled: "min_max" (by the coreset's range), "authors" (each set by
            its own range, so that predictions depend on the evaluation batch) or "l2" (each row to
            length 1, which the paper uses for ResNets).
        lambda_init: initial lambda_t of every task, >= 0.

    Raises:
        ConfigError: a value out of range, or a scenario that does not give the task at test time.
    """

    coreset_per_class: int = 20
    num_bases: int = 1024
    tau: float = 0.0001
    kernel_type: str = "rff"
    scaling: str = "min_max"
    lambda_init: float = changed(0.1)

    name: ClassVar[str] = "kcl"
    hparam_names: ClassVar[tuple[str, ...]] = ("tau",)
    vectorizable: ClassVar[tuple[str, ...]] = ("tau", "lambda_init")
    scenarios: ClassVar[tuple[str, ...]] = ("task", "domain")
    scenarios_reason: ClassVar[str] = "which must be given the task of a test sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("coreset_per_class", self.coreset_per_class, 1)
        whole("num_bases", self.num_bases, 1)
        at_least("tau", self.tau, 0.0)
        one_of("kernel_type", self.kernel_type, KERNELS)
        one_of("scaling", self.scaling, SCALINGS)
        at_least("lambda_init", self.lambda_init, 0.0)
        self.coresets: dict[int, Dataset] = {}

    @property
    def has_bases(self) -> bool:
        """Whether the kernel uses random Fourier features."""
        return self.kernel_type == "rff"

    # ---- coresets

    def coreset_size(self, task: int) -> int:
        """Return the number of samples in the task's coreset."""
        benchmark, mask = self.benchmark, self.benchmark.class_mask
        classes = benchmark.num_classes if mask is None else int(mask[task - 1].sum())
        return min(self.coreset_per_class * classes, benchmark.task_size(task, "train") // 2)

    def coreset_rows(self, task: int, y: np.ndarray) -> np.ndarray:
        """Return the rows of the task's data that form its coreset, balanced over classes."""
        rng = self.random.generator("memory", task, 1)
        return class_balanced_rows(y, rng)[: self.coreset_size(task)]

    def training_data(self, task: int) -> Dataset:
        """Return the task's samples without its coreset."""
        data = super().training_data(task)
        return data.rows(np.delete(np.arange(len(data.y)), self.coreset_rows(task, data.y)))

    def training_size(self, task: int) -> int:
        return super().training_size(task) - self.coreset_size(task)

    def on_before_task(self) -> None:
        """Set aside the task's coreset."""
        data = self.benchmark.task_data(self.task, "train")
        self.coresets[self.task] = data.rows(self.coreset_rows(self.task, data.y))
        arrays = [a for coreset in self.coresets.values() for a in coreset]
        self.progress.memory_bytes = sum(a.nbytes for a in arrays)

    def make_replay_dataset(self, data: Dataset) -> Dataset:
        """Return the task's data, then its coreset."""
        coreset = self.coresets[self.task]
        return Dataset(*map(np.concatenate, zip(data, coreset, strict=True)))

    def samples_per_step(self) -> int:
        """Add the coreset to the batch."""
        return super().samples_per_step() + max(map(self.coreset_size, self.trained_tasks()))

    # ---- random numbers

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Add the coreset's rows to every step."""
        parts = super().plan_epoch(task, epoch, num_samples)
        rows = num_samples + np.arange(len(self.coresets[task].y), dtype=np.int32)
        return [part | {"coreset": np.tile(rows, (len(part["index"]), 1))} for part in parts]

    def on_before_chunk(self, chunk: Chunk) -> None:
        """Draw the bases' noise step by step, so that it does not depend on the chunks."""
        if self.has_bases:
            steps = range(chunk.first_step, chunk.first_step + chunk.steps)
            chunk.arrays["noise"] = np.stack([self.noise(1, step) for step in steps])

    def noise(self, purpose: int, position: int) -> np.ndarray:
        """Return (D, d) float32 standard normals.

        Args:
            purpose: 1 = training, 2 = evaluation.
            position: the step that is trained, or the task (1-based) that is evaluated.
        """
        rng = self.random.generator("noise", purpose, position)
        shape = self.num_bases, self.num_features
        return rng.standard_normal(shape, dtype=np.float32)

    def phases(self) -> np.ndarray:
        """Return (D,) float32 phases b in [0, 2 pi), the same in all tasks."""
        rng = self.random.generator("noise", 3)
        return rng.uniform(0.0, 2 * np.pi, self.num_bases).astype(np.float32)

    @property
    def num_features(self) -> int:
        """Number of features d; only with bases."""
        return self.engine.parameter_shapes()["posterior/mean/linear_0/kernel"][0]

    # ---- weights and evaluation

    def initial_weights(self) -> dict[str, np.ndarray]:
        """Start every task's lambda at lambda_init, gamma at 1 and beta at 0."""
        weights = super().initial_weights()
        weights["lambda"] = np.full_like(weights["lambda"], self.lambda_init)
        weights["gamma"] = np.ones_like(weights["gamma"])
        return weights

    def evaluated_tasks(self) -> range:
        """Return the tasks so far, which have a coreset."""
        return range(1, self.task + 1)

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Add the coresets of all tasks to the other arrays."""
        exported = super().export_arrays()
        if not self.coresets:
            return exported
        joined = Dataset(*map(np.concatenate, zip(*self.coresets.values(), strict=True)))
        return exported | {PREFIX + name: array for name, array in joined._asdict().items()}

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().import_arrays(arrays)
        if PREFIX + "t" not in arrays:
            self.coresets = {}
            return
        joined = Dataset(*(np.asarray(arrays[PREFIX + name]) for name in Dataset._fields))
        tasks = np.unique(joined.t).tolist()
        self.coresets = {t + 1: joined.rows(np.flatnonzero(joined.t == t)) for t in tasks}

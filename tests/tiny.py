"""A softmax regression on a handful of samples: small enough to compute by hand in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from seqrun.backbones import BaseBackbone
from seqrun.benchmarks import BaseBenchmark, Dataset


@dataclass(kw_only=True, eq=False)
class TinyBenchmark(BaseBenchmark):
    """Images of 1 x 2 x 1, 3 classes, 7 training and 4 test samples in each of 3 tasks."""

    num_tasks: int = 3
    batch_size: int = 3
    size: int = 7

    name = "tiny"

    def prepare_datasets(self) -> tuple[dict[int, Dataset], dict[int, Dataset]]:
        """Draw noise that is the same whatever the seed of the run."""

        def draw(task: int, size: int) -> Dataset:
            rng = np.random.default_rng([task, size])
            x = rng.integers(0, 256, (size, 1, 2, 1)).astype(np.uint8)
            y = np.arange(size, dtype=np.int32) % 3
            return Dataset.of_task(x, y, task)

        tasks = range(1, self.num_tasks + 1)
        return {t: draw(t, self.size) for t in tasks}, {t: draw(t, 4) for t in tasks}


@dataclass(kw_only=True, eq=False)
class Linear(BaseBackbone):
    """One dense layer with a bias, on either backend."""

    backend: str = "torch"

    name = "linear"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> Any:
        """Return the framework's module."""
        if self.backend == "torch":
            return _torch_linear(int(np.prod(input_shape)), num_classes)
        return _jax_linear(num_classes)


def _torch_linear(inputs: int, classes: int) -> Any:
    from torch import nn

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(inputs, classes)

        def forward(self, x: Any) -> Any:
            return self.classifier(x.flatten(1))

    return Module()


def _jax_linear(classes: int) -> Any:
    from flax import linen as nn

    class Module(nn.Module):
        def setup(self) -> None:
            self.classifier = nn.Dense(classes)

        def __call__(self, x: Any, train: bool = False) -> Any:
            return self.classifier(x.reshape(len(x), -1))

    return Module()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of (N, C) logits."""
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    return exponential / exponential.sum(1, keepdims=True)


def cross_entropies(kernel: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray):
    """Return the (N,) losses of a softmax regression."""
    return -np.log(softmax(x @ kernel + bias)[np.arange(len(y)), y])


def sample_gradients(
    kernel: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray
) -> dict[str, np.ndarray]:
    """Return each sample's gradient of -log p(y|x): x (p - onehot(y))^T, and p - onehot(y).

    Args:
        kernel, bias: (F, C) and (C,).
        x, y: (N, F) inputs and (N,) labels.
    """
    delta = softmax(x @ kernel + bias) - np.eye(len(bias))[y]
    return {
        "classifier/kernel": x[:, :, None] * delta[:, None, :],
        "classifier/bias": delta,
    }

"""La-MAML on Rotated MNIST as a loop of its own after the authors' public code, not by seqrun.

`python tests/reproductions/lamaml_loop.py [--sync] SEED [NUM_TASKS]` trains on the tasks of a seed
of reproductions/lamaml2020/rotated_mnist_lamaml.yaml, or with --sync as rotated_mnist_lamaml_sync,
and prints the average accuracy. Unlike seqrun,
and like the authors, it replays with replacement and offers an image to the reservoir within the
first glance's inner steps; its random numbers are its own. Gradients are written out, in float32.
"""

from __future__ import annotations

import sys

import numpy as np

from seqrun.benchmarks import RotatedMNIST
from seqrun.plan import RandomStreams

SIZES = (784, 100, 100, 10)
ALPHA_INIT, LR_ALPHA, CLIP = 0.15, 0.3, 2.0
SYNC_LR, SYNC_LR_ALPHA = 0.3, 0.1
BATCH_SIZE, GLANCES, MEMORY_SIZE, REPLAY = 10, 5, 200, 10

Arrays = list[np.ndarray]
"""Kernel (out, in) and bias of each layer, or what belongs to them."""


def tasks_of(seed: int, num_tasks: int) -> RotatedMNIST:
    """Return the tasks that a seed of the row has."""
    benchmark = RotatedMNIST(
        num_tasks=num_tasks,
        samples_per_task=1000,
        batch_size=BATCH_SIZE,
        per_task_rotation=9,
        random_rotation=[0, 9],
        interpolation="nearest",
    )
    benchmark.prepare(RandomStreams(seed))
    return benchmark


def inputs(x: np.ndarray) -> np.ndarray:
    """Return (n, 784) float32 in [0, 1]."""
    return np.asarray(x, np.float32).reshape(len(x), -1) / 255


def forward(weights: Arrays, x: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of all layers, the logits last."""
    outputs = [x]
    for layer in range(0, len(weights), 2):
        z = outputs[-1] @ weights[layer].T + weights[layer + 1]
        outputs.append(np.maximum(z, 0) if layer < len(weights) - 2 else z)
    return outputs


def gradients(weights: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """Return those of the mean cross-entropy."""
    *hidden, logits = forward(weights, x)
    delta = np.exp(logits - logits.max(1, keepdims=True))
    delta /= delta.sum(1, keepdims=True)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    found: Arrays = []
    for layer in reversed(range(0, len(weights), 2)):
        below = hidden[layer // 2]
        found = [delta.T @ below, delta.sum(0), *found]
        delta = (delta @ weights[layer]) * (below > 0)
    return found


def clipped(values: Arrays) -> Arrays:
    """Return them with a global norm of CLIP at most."""
    norm = np.sqrt(sum(float((value**2).sum()) for value in values))
    factor = np.float32(min(1.0, CLIP / (norm + 1e-6)))
    return [value * factor for value in values]


def accuracy(seed: int, num_tasks: int, *, is_sync: bool = False) -> float:
    """Train on a seed's tasks in turn and return the average accuracy on all of them.

    Args:
        seed: of the tasks, the weights and all else.
        num_tasks: of the stream.
        is_sync: take the weights' step by a rate, not by alpha.
    """
    lr_alpha = SYNC_LR_ALPHA if is_sync else LR_ALPHA
    benchmark = tasks_of(seed, num_tasks)
    rng = np.random.default_rng(seed)
    weights: Arrays = []
    for fan_in, fan_out in zip(SIZES, SIZES[1:], strict=False):
        kernel = rng.standard_normal((fan_out, fan_in)) * np.sqrt(2 / fan_in)
        weights += [kernel.astype(np.float32), np.zeros(fan_out, np.float32)]
    alpha = [np.full_like(weight, ALPHA_INIT) for weight in weights]
    memory: list[tuple[np.ndarray, int]] = []
    offered = 0
    for task in range(1, num_tasks + 1):
        data = benchmark.task_data(task)
        order = rng.permutation(len(data.x))
        all_x, all_y = inputs(data.x)[order], np.asarray(data.y)[order]
        for start in range(0, len(order), BATCH_SIZE):
            x, y = all_x[start : start + BATCH_SIZE], all_y[start : start + BATCH_SIZE]
            for glance in range(GLANCES):
                places = rng.permutation(len(y))
                x, y = x[places], y[places]
                drawn = rng.integers(0, max(1, len(memory)), min(REPLAY, len(memory)))
                meta_x = np.stack([*(memory[i][0] for i in drawn), *x])
                meta_y = np.array([*(memory[i][1] for i in drawn), *y])
                fast = weights
                so_far = [np.zeros_like(weight) for weight in weights]
                of_weights, of_alpha = [[np.zeros_like(w) for w in weights] for _ in range(2)]
                for i in range(len(y)):
                    inner = gradients(fast, x[i : i + 1], y[i : i + 1])
                    fast = [
                        w - np.maximum(a, 0) * g for w, a, g in zip(fast, alpha, inner, strict=True)
                    ]
                    if glance == 0:
                        offered += 1
                        place = int(rng.integers(0, offered + 1))
                        if len(memory) < MEMORY_SIZE:
                            memory.append((x[i], y[i]))
                        elif place < MEMORY_SIZE:
                            memory[place] = x[i], y[i]
                    meta = gradients(fast, meta_x, meta_y)
                    for k, (g, h) in enumerate(zip(inner, meta, strict=True)):
                        so_far[k] += g
                        of_weights[k] += h / len(y)
                        of_alpha[k] -= h * so_far[k] / len(y)
                of_alpha = clipped([g * (a > 0) for g, a in zip(of_alpha, alpha, strict=True)])
                alpha = [a - lr_alpha * g for a, g in zip(alpha, of_alpha, strict=True)]
                rates = [SYNC_LR if is_sync else np.maximum(a, 0) for a in alpha]
                weights = [
                    w - rate * g
                    for w, rate, g in zip(weights, rates, clipped(of_weights), strict=True)
                ]
    found = []
    for task in range(1, num_tasks + 1):
        data = benchmark.task_data(task, "test")
        found.append((forward(weights, inputs(data.x))[-1].argmax(1) == data.y).mean())
    return float(np.mean(found))


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--sync"]
    seed, num_tasks = int(given[0]), int(given[1]) if given[1:] else 20
    print(f"{100 * accuracy(seed, num_tasks, is_sync='--sync' in sys.argv):.2f}")

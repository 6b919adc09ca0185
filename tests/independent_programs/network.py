"""A multi-layer perceptron, its gradients and two optimizers: NumPy, float64, by hand.

Nothing here knows the product but for the names of parameters. A network is a dictionary of
arrays, so that a gradient may be taken at any weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np

Arrays = dict[str, np.ndarray]

EPS = 1e-5  # of BatchNorm
MOMENTUM = 0.1  # of its running statistics


@dataclass
class Layer:
    """What the way back through a hidden layer needs.

    Attributes:
        x: its inputs.
        on: where the ReLU lets through.
        normal, deviation: normalised values and what they were divided by; None without BatchNorm.
        by_batch: whether the batch's own moments were taken.
    """

    x: np.ndarray
    on: np.ndarray
    normal: np.ndarray | None = None
    deviation: np.ndarray | None = None
    by_batch: bool = False


@dataclass
class Pass:
    """A forward pass.

    Attributes:
        w: the weights.
        layers: the hidden layers, the first first.
        features: (N, D), what the classifier was given.
        logits: (N, C).
        moments: name of a running statistic -> the batch's; the variance is the unbiased one.
    """

    w: Arrays
    layers: list[Layer]
    features: np.ndarray
    logits: np.ndarray
    moments: Arrays

    def gradient(
        self, d_logits: np.ndarray | None = None, d_features: np.ndarray | float = 0.0
    ) -> Arrays:
        """Return the gradient of a loss from its derivatives by logits, features, or both."""
        g = {name: np.zeros_like(a) for name, a in self.w.items()}
        d = np.zeros_like(self.features) + d_features
        if d_logits is not None:
            g["classifier/kernel"] = self.features.T @ d_logits
            g["classifier/bias"] = d_logits.sum(0)
            d = d + d_logits @ self.w["classifier/kernel"].T
        for i, layer in reversed(list(enumerate(self.layers))):
            d = d * layer.on
            if layer.normal is not None:
                g[f"norm_{i}/scale"] = (d * layer.normal).sum(0)
                g[f"norm_{i}/bias"] = d.sum(0)
                d = d * self.w[f"norm_{i}/scale"]
                if layer.by_batch:
                    d = d - d.mean(0) - layer.normal * (d * layer.normal).mean(0)
                d = d / layer.deviation
            g[f"hidden_{i}/kernel"] = layer.x.T @ d
            g[f"hidden_{i}/bias"] = d.sum(0)
            d = d @ self.w[f"hidden_{i}/kernel"].T
        return g


def forward(w: Arrays, x: np.ndarray, stats: Arrays | None = None) -> Pass:
    """Run x (N, F) through dense, [BatchNorm], ReLU, ..., dense.

    BatchNorm normalises by `stats`, its running statistics, or by the batch if they are None.
    """
    layers, moments = [], {}
    for i in count():
        if f"hidden_{i}/kernel" not in w:
            break
        z = x @ w[f"hidden_{i}/kernel"] + w[f"hidden_{i}/bias"]
        normal = deviation = None
        if f"norm_{i}/scale" in w:
            mean, variance = z.mean(0), z.var(0)
            moments[f"norm_{i}/mean"] = mean
            moments[f"norm_{i}/var"] = variance * len(z) / max(len(z) - 1, 1)
            if stats is not None:
                mean, variance = stats[f"norm_{i}/mean"], stats[f"norm_{i}/var"]
            deviation = np.sqrt(variance + EPS)
            normal = (z - mean) / deviation
            z = normal * w[f"norm_{i}/scale"] + w[f"norm_{i}/bias"]
        layers.append(Layer(x, z > 0, normal, deviation, stats is None))
        x = np.maximum(z, 0)
    head = w.get("classifier/kernel", np.zeros((x.shape[1], 0)))
    return Pass(w, layers, x, x @ head + w.get("classifier/bias", 0.0), moments)


def softmax(logits: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Return probabilities of (N, C) logits, 0 for classes that are not among the (C,) allowed."""
    if allowed is not None:
        logits = np.where(allowed, logits, -np.inf)
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def d_cross_entropy(
    logits: np.ndarray, y: np.ndarray, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Return the derivative of the mean cross-entropy by the logits: (p - onehot(y)) / N."""
    return (softmax(logits, allowed) - np.eye(logits.shape[1])[y]) / len(y)


def gradient(w: Arrays, x: np.ndarray, y: np.ndarray, allowed: np.ndarray | None = None) -> Arrays:
    """Return the gradient of the mean cross-entropy of a network without BatchNorm."""
    p = forward(w, x)
    return p.gradient(d_cross_entropy(p.logits, y, allowed))


# ---- arithmetic on dictionaries of arrays


def add(a: Arrays, b: Arrays, factor: float = 1.0) -> Arrays:
    """Return a + factor b."""
    return {name: a[name] + factor * b[name] for name in a}


def zeros(a: Arrays) -> Arrays:
    """Return zeros of the same shapes."""
    return {name: np.zeros_like(value) for name, value in a.items()}


def dot(a: Arrays, b: Arrays) -> float:
    """Return the scalar product of two dictionaries, each as one vector."""
    return float(sum((a[name] * b[name]).sum() for name in a))


def clipped(g: Arrays, norm: float | None) -> Arrays:
    """Return g with a global norm of at most `norm`, as torch.nn.utils.clip_grad_norm_."""
    if norm is None:
        return g
    return add(zeros(g), g, min(1.0, norm / (np.sqrt(dot(g, g)) + 1e-6)))


# ---- optimizers


class SGD:
    """torch.optim.SGD."""

    def __init__(self, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.start()

    def start(self) -> None:
        """Forget the past."""
        self.v: Arrays = {}

    def __call__(self, w: Arrays, g: Arrays) -> Arrays:
        """Return the weights after a step."""
        g = add(g, w, self.weight_decay)
        self.v = add(g, self.v, self.momentum) if self.v else g
        return add(w, self.v, -self.lr)


class Adam:
    """torch.optim.Adam, whose weight decay is added to the gradient."""

    def __init__(
        self,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.weight_decay = weight_decay
        self.start()

    def start(self) -> None:
        """Forget the past."""
        self.m: Arrays = {}
        self.v: Arrays = {}
        self.t = 0

    def __call__(self, w: Arrays, g: Arrays) -> Arrays:
        """Return the weights after a step."""
        self.m, self.v, self.t = self.m or zeros(w), self.v or zeros(w), self.t + 1
        g = add(g, w, self.weight_decay)
        self.m = {n: self.beta1 * self.m[n] + (1 - self.beta1) * g[n] for n in w}
        self.v = {n: self.beta2 * self.v[n] + (1 - self.beta2) * g[n] ** 2 for n in w}
        m = {n: self.m[n] / (1 - self.beta1**self.t) for n in w}
        v = {n: self.v[n] / (1 - self.beta2**self.t) for n in w}
        return {n: w[n] - self.lr * m[n] / (np.sqrt(v[n]) + self.eps) for n in w}

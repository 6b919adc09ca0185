"""KCL on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.training.step import Step
from seqrun.algorithms.kcl import RIDGE, Classifier, KCLOptions, KCLState
from seqrun.algorithms.kcl.network.jax import KCLNetwork
from seqrun.formulas.parameters.jax import canonical, as_tree
from seqrun.formulas.jax import allow_classes, cross_entropy
from seqrun.formulas.kernels.jax import (
    fourier_features,
    gaussian_divergence,
    gram,
    ridge_weights,
)

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class KCL(KCLOptions, JaxBaseAlgorithm):
    """Kernel Continual Learning (Derakhshani et al. 2021)."""

    def build_module(self) -> nn.Module:
        """Return the encoder with what trains beside it."""
        return KCLNetwork(super().build_module(), self.num_tasks, self.has_bases)

    def initial_state(self) -> KCLState:
        """Return the phases of the bases."""
        return KCLState(self._on_device(self.phases()) if self.has_bases else None)

    def backward(self, step: Step) -> None:
        """Compute the task loss, and the gradient of it plus tau KL(q || p)."""
        x, y, t = step.batch
        rows = step.arrays["coreset"]
        noise = step.arrays.get("noise")
        labels = step.pool.y[rows]

        def total(params: Arrays) -> tuple[Array, tuple[Array, Array, Arrays]]:
            keys = jax.random.split(step.key)
            features, stats = self.training_features(params, step.stats, x, keys[0])
            images = self.inputs(step.pool.x[rows])
            coreset, stats = self.training_features(params, stats, images, keys[1])
            classifier, posterior = self.classifier(
                params, coreset, labels, t[0], noise, step.state.phase
            )
            scaled = self.scaled(features, classifier.low, classifier.high)
            logits = allow_classes(self.logits(scaled, classifier), step.mask, t)
            loss = divergent = cross_entropy(logits, y)
            if self.has_bases:
                prior = self.amortised(params, "prior", scaled.mean(0))
                (mean, log_variance), tau = posterior, step.hyper["tau"]
                divergent = loss + tau * gaussian_divergence(mean, log_variance, *prior)
            return divergent, (loss, logits, stats)

        step.gradients, (step.loss, step.logits, step.stats) = jax.grad(total, has_aux=True)(
            step.params
        )

    def training_features(
        self, params: Arrays, stats: Arrays, x: Array, key: Array
    ) -> tuple[Array, Arrays]:
        """Return the features of a training forward and the next BatchNorm statistics."""
        variables = {"params": as_tree(params), "batch_stats": as_tree(stats)}
        features, updated = self.module.apply(
            variables,
            x,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
            method="encode",
        )
        return features, canonical(updated.get("batch_stats", {}))

    def amortised(self, params: Arrays, network: str, mean: Array) -> tuple[Array, Array]:
        """Return mu and log sigma^2 from a mean feature by the network "posterior" or "prior"."""
        moments: Any = self.module.apply(
            {"params": as_tree(params)}, mean, method=lambda module, x: getattr(module, network)(x)
        )
        return moments

    def classifier(
        self,
        params: Arrays,
        features: Array,
        y: Array,
        t: Array,
        noise: Array | None,
        phase: Array | None,
    ) -> tuple[Classifier, tuple[Array, Array] | None]:
        """Return what a coreset's features make of task `t` (0-based), and mu, log sigma^2 of q."""
        low, high = features.min(), features.max()
        support, bases, posterior = self.scaled(features, low, high), None, None
        if self.has_bases:
            mean, log_variance = posterior = self.amortised(params, "posterior", support.mean(0))
            bases = mean + jnp.exp(0.5 * log_variance) * noise
            support = fourier_features(support, bases, phase)
        ridge = jnp.abs(params["lambda"][t]) + RIDGE
        targets = jax.nn.one_hot(y, self.benchmark.num_classes)
        weights = ridge_weights(gram(self.kernel_type, support, support), ridge, targets)
        gamma, beta = params["gamma"][t], params["beta"][t]
        return Classifier(low, high, bases, phase, support, weights, gamma, beta), posterior

    def scaled(self, features: Array, low: Array, high: Array) -> Array:
        """Return features scaled by the coreset's range, their own, or to length 1."""
        if self.scaling == "l2":
            squares = (features**2).sum(1, keepdims=True)
            return features * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
        if self.scaling == "authors":
            low, high = features.min(), features.max()
        return (features - low) / jnp.maximum(high - low, jnp.finfo(low.dtype).eps)

    def logits(self, scaled: Array, classifier: Classifier) -> Array:
        """Return the (B, C) predictions of scaled features."""
        if self.has_bases:
            scaled = fourier_features(scaled, classifier.bases, classifier.phase)
        values = gram(self.kernel_type, scaled, classifier.support) @ classifier.weights
        return classifier.gamma * values + classifier.beta

    def evaluation_reads(self, task: int) -> Classifier | None:
        """Return the task's classifier, with its own bases; None before it has a coreset."""
        if task not in self.coresets:
            return None
        x, y, t = map(self._on_device, self.coresets[task])
        noise = self._on_device(self.noise(2, task)) if self.has_bases else None
        args = (self.params, self.stats, self.state.phase, noise, x, y, t[0])
        return self.compiled("classifier", self._evaluation_classifier, args)(*args)

    def _evaluation_classifier(
        self,
        params: Arrays,
        stats: Arrays,
        phase: Array | None,
        noise: Array | None,
        x: Array,
        y: Array,
        t: Array,
    ) -> Classifier:
        features = self.encode(params, stats, self.inputs(x))
        return self.classifier(params, features, y, t, noise, phase)[0]

    def evaluation_logits(
        self, params: Arrays, stats: Arrays, reads: Classifier, x: Array
    ) -> Array:
        """Return the predictions of the task's classifier."""
        features = self.encode(params, stats, x)
        return self.logits(self.scaled(features, reads.low, reads.high), reads)

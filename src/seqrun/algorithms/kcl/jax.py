"""KCL on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from seqrun.algorithms.base import Batch, Losses, Step
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.kcl import RIDGE, Classifier, KCLOptions, KCLState
from seqrun.algorithms.kcl.network import SCALARS
from seqrun.algorithms.kcl.network.jax import KCLNetwork
from seqrun.formulas.jax import allow_classes, cross_entropy
from seqrun.formulas.kernels.jax import (
    fourier_features,
    gaussian_divergence,
    gram,
    ridge_weights,
    scaled_features,
)
from seqrun.formulas.parameters.jax import as_tree

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class KCL(KCLOptions, JaxBaseAlgorithm):
    """Kernel Continual Learning (Derakhshani et al. 2021)."""

    def build_module(self) -> nn.Module:
        """Return the encoder together with KCL's own networks and scalars."""
        return KCLNetwork(super().build_module(), self.num_tasks, self.has_bases)

    def initial_state(self) -> KCLState:
        return KCLState(self.engine.to_device(self.phases()) if self.has_bases else None)

    def losses(self, step: Step) -> Losses:
        """L = CE(logits(x), y) + tau KL(q || p)."""
        x, y, t = step.batch
        rows, noise = step.arrays["coreset"], step.arrays.get("noise")
        images, labels = self.inputs(step.dataset.x[rows]), step.dataset.y[rows]
        keys = jax.random.split(step.key)
        features = self.training_features(step, x, keys[0])
        coreset = Batch(self.training_features(step, images, keys[1]), labels, t[0])
        classifier, posterior = self.classifier(step.params, coreset, noise, step.state.phase)
        scaled = scaled_features(self.scaling, features, classifier.low, classifier.high)
        logits = allow_classes(self.logits(scaled, classifier), step.mask, t)
        ce = total = cross_entropy(logits, y)
        if posterior is not None:
            prior = self.amortised(step.params, "prior", scaled.mean(0))
            total = ce + step.hparams["tau"] * gaussian_divergence(*posterior, *prior)
        return Losses(task=ce, total=total, logits=logits)

    def on_after_backward(self, step: Step) -> None:
        """Set the gradient of beta to the 0 that it is under a softmax; rounding leaves another."""
        step.gradients = step.gradients | {"beta": jnp.zeros_like(step.gradients["beta"])}
        step.cache["scalars"] = {name: step.params[name] for name in SCALARS}

    def on_after_optimizer_step(self, step: Step) -> None:
        """Restore other tasks' scalars, which momentum, weight decay or Adam may have changed."""
        own = jnp.arange(self.num_tasks) == step.batch.t[0]
        kept = {
            name: jnp.where(own, step.params[name], before)
            for name, before in step.cache["scalars"].items()
        }
        step.params = step.params | kept

    def amortised(self, params: Arrays, network: str, mean: Array) -> tuple[Array, Array]:
        """Return mu and log sigma^2 of the "posterior" or "prior", given a mean feature."""
        moments: Any = self.module.apply(
            {"params": as_tree(params)}, mean, method=lambda module, x: getattr(module, network)(x)
        )
        return moments

    def classifier(
        self, params: Arrays, coreset: Batch, noise: Array | None, phase: Array | None
    ) -> tuple[Classifier, tuple[Array, Array] | None]:
        """Return the classifier of a coreset of (N, d) features, and mu and log sigma^2 of q."""
        features, y, t = coreset
        low, high = features.min(), features.max()
        support, bases, posterior = scaled_features(self.scaling, features, low, high), None, None
        if noise is not None and phase is not None:
            mean, log_variance = posterior = self.amortised(params, "posterior", support.mean(0))
            bases = mean + jnp.exp(0.5 * log_variance) * noise
            support = fourier_features(support, bases, phase)
        ridge = jnp.abs(params["lambda"][t]) + RIDGE
        targets = jax.nn.one_hot(y, self.benchmark.num_classes)
        weights = ridge_weights(gram(self.kernel_type, support, support), ridge, targets)
        gamma, beta = params["gamma"][t], params["beta"][t]
        return Classifier(low, high, bases, phase, support, weights, gamma, beta), posterior

    def logits(self, scaled: Array, classifier: Classifier) -> Array:
        """Return the (B, C) predictions of scaled features."""
        if self.has_bases:
            scaled = fourier_features(scaled, classifier.bases, classifier.phase)
        values = gram(self.kernel_type, scaled, classifier.support) @ classifier.weights
        return classifier.gamma * values + classifier.beta

    def evaluation_arrays(self, task: int) -> Classifier | None:
        """Return the task's classifier, with its own bases; None if it has no coreset yet."""
        if task not in self.coresets:
            return None
        x, y, t = map(self.engine.to_device, self.coresets[task])
        noise = self.engine.to_device(self.noise(2, task)) if self.has_bases else None
        args = (self.params, self.stats, Batch(x, y, t[0]), noise, self.state.phase)
        return self.engine.compiled("classifier", self._evaluation_classifier, args)(*args)

    def _evaluation_classifier(
        self, params: Arrays, stats: Arrays, coreset: Batch, *noise_and_phase: Array | None
    ) -> Classifier:
        coreset = coreset._replace(x=self.encode(params, stats, self.inputs(coreset.x)))
        return self.classifier(params, coreset, *noise_and_phase)[0]

    def evaluation_logits(
        self, params: Arrays, stats: Arrays, arrays: Classifier, x: Array
    ) -> Array:
        features = self.encode(params, stats, x)
        return self.logits(scaled_features(self.scaling, features, arrays.low, arrays.high), arrays)

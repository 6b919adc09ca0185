"""KCL on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqrun.algorithms.base import Batch, Losses, Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.kcl import RIDGE, Classifier, KCLOptions, KCLState
from seqrun.algorithms.kcl.network import SCALARS
from seqrun.algorithms.kcl.network.torch import KCLNetwork
from seqrun.formulas.kernels.torch import (
    fourier_features,
    gaussian_divergence,
    gram,
    ridge_weights,
    scaled_features,
)
from seqrun.formulas.torch import allow_classes, cross_entropy, one_hot

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class KCL(KCLOptions, PyTorchBaseAlgorithm):
    """Kernel Continual Learning (Derakhshani et al. 2021)."""

    def build_module(self) -> nn.Module:
        """Return the encoder together with KCL's own networks and scalars."""
        shape, tasks = self.benchmark.input_shape, self.num_tasks
        return KCLNetwork(super().build_module(), shape, tasks, self.has_bases)

    def initial_state(self) -> KCLState:
        phase = self.engine.to_device(self.phases()) if self.has_bases else None
        return KCLState(phase)

    def losses(self, step: Step) -> Losses:
        """L = CE(logits(x), y) + tau KL(q || p)."""
        x, y, t = step.batch
        rows, noise = step.arrays["coreset"], step.arrays.get("noise")
        images, labels = self.inputs(step.dataset.x[rows]), step.dataset.y[rows]
        features = self.training_features(step, x)
        coreset = Batch(self.training_features(step, images), labels, t[0])
        classifier, posterior = self.classifier(coreset, noise, step.state.phase)
        scaled = scaled_features(self.scaling, features, classifier.low, classifier.high)
        logits = allow_classes(self.logits(scaled, classifier), step.mask, t)
        ce = total = cross_entropy(logits, y)
        if posterior is not None:
            network: Any = self.module
            prior = network.prior(scaled.mean(0))
            total = ce + step.hparams["tau"] * gaussian_divergence(*posterior, *prior)
        return Losses(task=ce, total=total, logits=logits)

    @torch.no_grad()
    def on_after_backward(self, step: Step) -> None:
        """Set the gradient of beta to the 0 that it is under a softmax; rounding leaves another."""
        step.gradients = step.gradients | {"beta": torch.zeros_like(step.gradients["beta"])}
        step.cache["scalars"] = {name: step.params[name].clone() for name in SCALARS}

    @torch.no_grad()
    def on_after_optimizer_step(self, step: Step) -> None:
        """Restore other tasks' scalars, which momentum, weight decay or Adam may have changed."""
        for name, before in step.cache["scalars"].items():
            own = torch.arange(len(before), device=before.device) == step.batch.t[0]
            step.params[name].copy_(torch.where(own, step.params[name], before))

    def classifier(
        self, coreset: Batch, noise: Tensor | None, phase: Tensor | None
    ) -> tuple[Classifier, tuple[Tensor, Tensor] | None]:
        """Return the classifier of a coreset of (N, d) features, and mu and log sigma^2 of q."""
        features, y, t = coreset
        low, high = features.min(), features.max()
        support, bases, posterior = scaled_features(self.scaling, features, low, high), None, None
        if noise is not None and phase is not None:
            network: Any = self.module
            mean, log_variance = posterior = network.posterior(support.mean(0))
            bases = mean + (0.5 * log_variance).exp() * noise
            support = fourier_features(support, bases, phase)
        ridge = self.scalar_of("lambda", t).abs() + RIDGE
        targets = one_hot(y, self.benchmark.num_classes).to(support.dtype)
        weights = ridge_weights(gram(self.kernel_type, support, support), ridge, targets)
        gamma, beta = self.scalar_of("gamma", t), self.scalar_of("beta", t)
        return Classifier(low, high, bases, phase, support, weights, gamma, beta), posterior

    def scalar_of(self, name: str, t: Tensor) -> Tensor:
        """Return a task's own scalar; indexing by `t` would read it and prevent compilation."""
        return self.params[name].index_select(0, t.view(1)).squeeze(0)

    def logits(self, scaled: Tensor, classifier: Classifier) -> Tensor:
        """Return the (B, C) predictions of scaled features."""
        if self.has_bases:
            scaled = fourier_features(scaled, classifier.bases, classifier.phase)
        values = gram(self.kernel_type, scaled, classifier.support) @ classifier.weights
        return classifier.gamma * values + classifier.beta

    @torch.no_grad()
    def evaluation_arrays(self, task: int) -> Classifier | None:
        """Return the task's classifier, with its own bases; None if it has no coreset yet."""
        if task not in self.coresets:
            return None
        x, y, t = (self.engine.to_device(a) for a in self.coresets[task])
        noise = None
        if self.has_bases:
            noise = self.engine.to_device(self.noise(2, task))
        features = self.encode(self.params, self.stats, self.inputs(x))
        coreset = Batch(features, y.long(), t[0].long())
        found, _ = self.classifier(coreset, noise, self.state.phase)
        # gamma and beta are live parameters, which training changes.
        return found._replace(gamma=found.gamma.clone(), beta=found.beta.clone())

    def evaluation_logits(
        self, params: Tensors, stats: Tensors, arrays: Classifier, x: Tensor
    ) -> Tensor:
        features = self.encode(params, stats, x)
        return self.logits(scaled_features(self.scaling, features, arrays.low, arrays.high), arrays)

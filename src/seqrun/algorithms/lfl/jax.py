"""LFL on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from seqrun.algorithms.base import Losses, Step
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.lfl import CLASSIFIER, LFLOptions
from seqrun.formulas.jax import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class LFL(LFLOptions, JaxBaseAlgorithm):
    """Less-Forgetting Learning (Jung et al. 2016)."""

    def losses(self, step: Step) -> Losses:
        """L = CE(h(x), y) + lambda * factor * mean |f(x; old) - f(x; new)|^2."""
        x, y, t = step.batch
        old = step.state
        features, target = self.training_features(step, x), self.encode(old.params, old.stats, x)
        logits = allow_classes(self.classify(step, features), step.mask, t)
        ce = cross_entropy(logits, y)
        squares = (features - target) ** 2
        distances = squares.sum(1) if self.reduction == "sum" else squares.mean(1)
        weight = step.hparams["lfl_lambda"] * step.hparams["factor"]
        return Losses(task=ce, total=ce + weight * distances.mean(), logits=logits)

    def on_after_backward(self, step: Step) -> None:
        """Set the gradient of frozen outputs to 0, so that it does not affect clipping."""
        before = {n: p for n, p in step.params.items() if n.startswith(CLASSIFIER)}
        masked = {n: jnp.where(step.state.frozen, 0.0, step.gradients[n]) for n in before}
        step.gradients = step.gradients | masked
        step.cache["classifier"] = before

    def on_after_optimizer_step(self, step: Step) -> None:
        """Restore frozen outputs, which momentum or weight decay may have changed."""
        kept = {
            name: jnp.where(step.state.frozen, before, step.params[name])
            for name, before in step.cache["classifier"].items()
        }
        step.params = step.params | kept

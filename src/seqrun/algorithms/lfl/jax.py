"""LFL on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.training.step import Step
from seqrun.algorithms.lfl import CLASSIFIER, LFLOptions, LFLState
from seqrun.formulas.parameters.jax import canonical, as_tree
from seqrun.formulas.jax import allow_classes, cross_entropy

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class LFL(LFLOptions, JaxBaseAlgorithm):
    """Less-Forgetting Learning (Jung et al. 2016)."""

    def initial_state(self) -> LFLState:
        """Return the network, and what of its classifier is to be frozen."""
        return LFLState(self.params, self.stats, jnp.asarray(self.trained_outputs()))

    def on_after_task(self, algorithm: Any) -> None:
        """Keep the network as it is before the next task."""
        self.state = self.initial_state()

    def backward(self, step: Step) -> None:
        """Compute the task loss, and the gradient of it plus the distance to the old features."""
        old = {"params": as_tree(step.state.params), "batch_stats": as_tree(step.state.stats)}
        target: Any = self.module.apply(old, step.batch.x, method="encode")

        def total(params: Arrays) -> tuple[Array, tuple[Array, Array, Arrays]]:
            features, logits, stats = self._forward_with_features(params, step)
            logits = allow_classes(logits, step.mask, step.batch.t)
            loss = cross_entropy(logits, step.batch.y)
            squares = (features - target) ** 2
            distances = squares.sum(1) if self.reduction == "sum" else squares.mean(1)
            weight = step.hyper["lfl_lambda"] * step.hyper["factor"]
            return loss + weight * distances.mean(), (loss, logits, stats)

        step.gradients, (step.loss, step.logits, step.stats) = jax.grad(total, has_aux=True)(
            step.params
        )

    def _forward_with_features(self, params: Arrays, step: Step) -> tuple[Array, Array, Arrays]:
        def both(module: Any, x: Array) -> tuple[Array, Array]:
            features = module.encode(x, train=True)
            return features, module.classify(features)

        variables = {"params": as_tree(params), "batch_stats": as_tree(step.stats)}
        (features, logits), updated = self.module.apply(
            variables,
            step.batch.x,
            rngs={"dropout": step.key},
            mutable=["batch_stats"],
            method=both,
        )
        return features, logits, canonical(updated.get("batch_stats", {}))

    def on_after_backward(self, algorithm: Any, step: Step) -> None:
        """Give frozen outputs no gradient, so that they take no part in clipping."""
        before = {n: p for n, p in step.params.items() if n.startswith(CLASSIFIER)}
        trained = {n: jnp.where(step.state.frozen, 0.0, step.gradients[n]) for n in before}
        step.gradients = step.gradients | trained
        step.saved["classifier"] = before

    def on_after_optimizer_step(self, algorithm: Any, step: Step) -> None:
        """Put frozen outputs back, which momentum or weight decay may have moved."""
        kept = {
            name: jnp.where(step.state.frozen, before, step.params[name])
            for name, before in step.saved["classifier"].items()
        }
        step.params = step.params | kept

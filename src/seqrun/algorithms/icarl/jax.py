"""iCaRL on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.training.step import Step
from seqrun.algorithms.icarl import ICaRLKept, ICaRLOptions, ICaRLState
from seqrun.formulas.jax import allow_classes

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class ICaRL(ICaRLOptions, JaxBaseAlgorithm):
    """Incremental Classifier and Representation Learning (Rebuffi et al. 2017)."""

    def initial_state(self) -> ICaRLState:
        """Return the network, and the classes that it has learned."""
        return ICaRLState(*self.snapshot(), self._on_device(self.past_classes()))

    def training_loss(self, params: Arrays, step: Step) -> tuple[Array, tuple[Array, Arrays]]:
        """Return the binary cross-entropy of labels and old outputs, logits and statistics."""
        logits, stats = self.forward(params, step.stats, step.batch.x, step.key)
        old = step.state
        given = jax.nn.sigmoid(self.predict(old.params, old.stats, step.batch.x))
        labels = jax.nn.one_hot(step.batch.y, logits.shape[1])
        targets = jnp.where(old.classes, given, labels)
        terms = optax.sigmoid_binary_cross_entropy(logits, targets)
        counted = jnp.ones_like(terms) if step.mask is None else step.mask[step.batch.t]
        losses = (terms * counted).sum(1)
        if self.reduction == "mean":
            losses = losses / counted.sum(1)
        return losses.mean(), (allow_classes(logits, step.mask, step.batch.t), stats)

    def as_kept(self, means: np.ndarray, known: np.ndarray) -> ICaRLKept:
        """Return the means of classes on the device."""
        return ICaRLKept(self._on_device(means), self._on_device(known))

    def evaluation_logits(
        self, params: Arrays, stats: Arrays, reads: ICaRLKept | None, x: Array
    ) -> Array:
        """Return the cosines to the means: with rows of length 1, the nearest is the largest."""
        if reads is None:
            return self.predict(params, stats, x)
        features = self.encode(params, stats, x)
        lengths = jnp.linalg.norm(features, axis=1, keepdims=True)
        cosines = (features / jnp.maximum(lengths, 1e-12)) @ reads.means.T
        return jnp.where(reads.known, cosines, jnp.finfo(cosines.dtype).min)

"""iCaRL on JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base import Losses, Step
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.icarl import ICaRLMeans, ICaRLOptions
from seqrun.checks import Numerics
from seqrun.formulas.jax import allow_classes, binary_cross_entropy

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class ICaRL(ICaRLOptions, JaxBaseAlgorithm):
    """Incremental Classifier and Representation Learning (Rebuffi et al. 2017)."""

    numerics: ClassVar[Numerics] = 2
    """The derivative of the loss, whose rounding errors Adam turned into full steps."""

    def losses(self, step: Step) -> Losses:
        """L = sum over classes of BCE(g_y(x), old output of an earlier class, else the label)."""
        x, y, t = step.batch
        logits, old = self.forward(step, x), step.state
        old_outputs = jax.nn.sigmoid(self.predict(old.params, old.stats, x))
        labels = jax.nn.one_hot(y, logits.shape[1])
        targets = jnp.where(old.classes, old_outputs, labels)
        terms = binary_cross_entropy(logits, targets)
        included = jnp.ones_like(terms) if step.mask is None else step.mask[t]
        losses = (terms * included).sum(1)
        if self.reduction == "mean":
            losses = losses / included.sum(1)
        loss = losses.mean()
        return Losses(task=loss, total=loss, logits=allow_classes(logits, step.mask, t))

    def evaluation_logits(
        self, params: Arrays, stats: Arrays, arrays: ICaRLMeans | None, x: Array
    ) -> Array:
        """Return the cosine similarities to the class means; the nearest mean has the largest."""
        if arrays is None:
            return self.predict(params, stats, x)
        features = self.encode(params, stats, x)
        lengths = jnp.linalg.norm(features, axis=1, keepdims=True)
        cosines = (features / jnp.maximum(lengths, 1e-12)) @ arrays.means.T
        return jnp.where(arrays.known, cosines, jnp.finfo(cosines.dtype).min)

"""DER and DER++ on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base import Losses, Step
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.der import DEROptions, DERPPOptions, DERState
from seqrun.formulas.jax import allow_classes, cross_entropy


@dataclass(kw_only=True, eq=False)
class DER(DEROptions, JaxBaseAlgorithm):
    """Dark Experience Replay (Buzzega et al. 2020)."""

    def initial_state(self) -> DERState:
        return DERState(jnp.zeros((self.memory_size, self.benchmark.num_classes)))

    def losses(self, step: Step) -> Losses:
        """L = CE(h(x), y) + alpha |h(x') - z'|^2."""
        x, y, t = step.batch
        raw = self.forward(step, x)
        step.cache["logits"] = raw
        logits = allow_classes(raw, step.mask, t)
        ce = total = cross_entropy(logits, y)
        if len(step.batches["replay"].y):
            total = ce + self.replay_loss(step)
        return Losses(task=ce, total=total, logits=logits)

    def replay_loss(self, step: Step) -> Array:
        """Return alpha |h(x') - z'|^2."""
        logits = self.forward(step, step.batches["replay"].x, jax.random.fold_in(step.key, 1))
        stored = step.state.logits[step.arrays["replay_slot"]]
        return step.hparams["alpha"] * jnp.square(logits - stored).mean()

    def on_after_backward(self, step: Step) -> None:
        """Store the logits of the samples that enter the reservoir."""
        slots = step.arrays["write_slot"]  # memory_size = not stored: out of range, dropped
        step.state = DERState(step.state.logits.at[slots].set(step.cache["logits"], mode="drop"))


@dataclass(kw_only=True, eq=False)
class DERPP(DERPPOptions, DER):
    """Dark Experience Replay ++ (Buzzega et al. 2020)."""

    def replay_loss(self, step: Step) -> Array:
        """Return alpha |h(x') - z'|^2 + beta CE(h(x''), y'')."""
        distance = super().replay_loss(step)
        x, y, t = step.batches["replay_labels"]
        logits = self.forward(step, x, jax.random.fold_in(step.key, 2))
        logits = allow_classes(logits, step.mask, t)
        return distance + step.hparams["beta"] * cross_entropy(logits, y)

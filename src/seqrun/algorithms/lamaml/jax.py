"""La-MAML on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base import Batch, Step
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.lamaml import LaMAMLOptions, LaMAMLState
from seqrun.formulas.jax import allow_classes, cross_entropy

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class LaMAML(LaMAMLOptions, JaxBaseAlgorithm):
    """Look-ahead meta-learning with a learned rate for every parameter (Gupta et al. 2020)."""

    def initial_state(self) -> LaMAMLState:
        return LaMAMLState({n: jnp.full_like(p, self.alpha_init) for n, p in self.params.items()})

    def backward(self, step: Step) -> None:
        """Compute the meta-loss and its gradients with respect to theta and alpha."""
        meta = jax.value_and_grad(self.meta_loss, argnums=(0, 1), has_aux=True)
        (step.loss, (step.logits, step.stats)), (step.gradients, gradients) = meta(
            step.params, step.state.alpha, step
        )
        step.cache = step.cache | {"alpha_gradients": gradients}

    def meta_loss(
        self, params: Arrays, alpha: Arrays, step: Step
    ) -> tuple[Array, tuple[Array, Arrays]]:
        """Return the mean of the losses after the inner steps, and the batch's final logits."""
        rates = jax.tree.map(jax.nn.relu, alpha) if self.inner_relu else alpha
        pairs = zip(step.batch, step.batches["replay"], strict=True)
        meta = Batch(*(jnp.concatenate(pair) for pair in pairs))

        def look_ahead(
            carry: tuple[Arrays, Arrays, Array], rows: Array
        ) -> tuple[tuple[Arrays, Arrays, Array], tuple[Array, Array]]:
            fast, stats, key = carry
            key, inner_key, meta_key = jax.random.split(key, 3)
            gradients = self.inner_gradients(fast, stats, rows, step, inner_key)
            fast = jax.tree.map(lambda p, r, g: p - r * g, fast, rates, gradients)
            logits, stats = self.forward_with(fast, stats, meta.x, meta_key)
            logits = allow_classes(logits, step.mask, meta.t)
            loss = cross_entropy(logits, meta.y)
            return (fast, jax.lax.stop_gradient(stats), key), (loss, logits[:current])

        current, size = len(step.batch.y), self.inner_chunk_size
        chunks, rest = divmod(current, size)
        rows = jnp.arange(current)
        carry, (losses, logits) = jax.lax.scan(
            look_ahead, (params, step.stats, step.key), rows[: current - rest].reshape(chunks, size)
        )
        if rest:
            carry, (loss, after) = look_ahead(carry, rows[current - rest :])
            losses, logits = jnp.append(losses, loss), after[None]
        return losses.mean(), (logits[-1], carry[1])

    def inner_gradients(
        self, fast: Arrays, stats: Arrays, rows: Array, step: Step, key: Array
    ) -> Arrays:
        """Return the gradient of a chunk's loss, a constant unless `second_order`."""
        x, y, t = step.batch

        def loss(params: Arrays) -> Array:
            if self.backbone.has_batch_statistics:  # run the whole batch: a chunk may be one sample
                logits = self.forward_with(params, stats, x, key)[0][rows]
            else:
                logits, _ = self.forward_with(params, stats, x[rows], key)
            return cross_entropy(allow_classes(logits, step.mask, t[rows]), y[rows])

        return jax.grad(loss)(fast if self.second_order else jax.lax.stop_gradient(fast))

    def optimizer_step(self, step: Step) -> None:
        """Update alpha first, then theta with the new alpha or the optimizer."""
        if self.learn_lr:
            gradients = self.clipped(step, step.cache["alpha_gradients"])
            rate = step.hparams["lr_alpha"]
            alpha = jax.tree.map(lambda a, g: a - rate * g, step.state.alpha, gradients)
            step.state = LaMAMLState(alpha)
        if self.sync_update:
            super().optimizer_step(step)
            return
        step.gradients = self.clipped(step, step.gradients)
        step.params = jax.tree.map(
            lambda p, a, g: p - jax.nn.relu(a) * g, step.params, step.state.alpha, step.gradients
        )

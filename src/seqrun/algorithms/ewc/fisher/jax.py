"""Fisher estimates for JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import Array

from seqrun.algorithms.ewc import RUNNING_DECAY, EWCState

Arrays = dict[str, Array]


def label_losses(fisher: str, weight: str, logits: Array, y: Array, draw: Array) -> Array:
    """Return the (B,) losses whose squared gradients the estimate averages.

    Args:
        fisher, weight: `fisher` and `fisher_weight` of EWCOptions.
        logits: (B, C) of the allowed classes.
        y: (B,) true labels; for "exact", the class whose term is computed.
        draw: (B,) uniform in [0, 1), which chooses the labels of "sample".
    """
    p = jax.nn.softmax(jax.lax.stop_gradient(logits))
    if fisher == "pred":
        y = p.argmax(1)
    elif fisher == "sample":
        y = jnp.minimum((p.cumsum(1) < draw[:, None]).sum(1), p.shape[1] - 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    if fisher == "exact" or weight == "p":
        losses *= jnp.sqrt(jnp.take_along_axis(p, y[:, None], 1)[:, 0])  # p after squaring
    return losses


def running_state(state: EWCState, gradients: Arrays, every: int) -> EWCState:
    """Return the state after another batch gradient, with an update after `every` steps."""
    squares = jax.tree.map(lambda s, g: s + g**2, state.squares, gradients)
    state = state._replace(squares=squares, count=state.count + 1)
    due, new = state.count % every == 0, updated(state, every)
    squares, running = jax.tree.map(
        lambda a, b: jnp.where(due, a, b),
        (new.squares, new.running),
        (state.squares, state.running),
    )
    return state._replace(squares=squares, running=running)


def updated(state: EWCState, steps: int) -> EWCState:
    """Return the state after an update of the running Fisher by the squares of some steps."""
    rate = (1 - RUNNING_DECAY) / steps
    running = jax.tree.map(lambda f, s: RUNNING_DECAY * f + rate * s, state.running, state.squares)
    return state._replace(squares=jax.tree.map(jnp.zeros_like, state.squares), running=running)


def unit_scaled(running: Arrays) -> Arrays:
    """Return the running Fisher, min-max scaled to [0, 1] over all parameters."""
    values = jnp.concatenate([f.ravel() for f in running.values()])
    low, high = values.min(), values.max()
    span = jnp.maximum(high - low, jnp.finfo(values.dtype).tiny)
    return {n: (f - low) / span for n, f in running.items()}


def normalized(fisher: Arrays, how: str) -> Arrays:
    """Return a Fisher divided by its largest element ("max"), by the "sum" of all, or as it is."""
    if how == "none":
        return fisher
    values = jnp.concatenate([f.ravel() for f in fisher.values()])
    size = values.max() if how == "max" else values.sum()
    size = jnp.maximum(size, jnp.finfo(values.dtype).tiny)
    return {n: f / size for n, f in fisher.items()}

"""SI on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base import Step
from seqrun.algorithms.regularization.jax import RegularizationAlgorithm
from seqrun.algorithms.si import SIOptions, SIState

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class SI(SIOptions, RegularizationAlgorithm):
    """Synaptic Intelligence (Zenke et al. 2017)."""

    def initial_state(self) -> SIState:
        anchor, importance = super().initial_state()
        return SIState(anchor, importance, jax.tree.map(jnp.zeros_like, anchor))

    def on_after_backward(self, step: Step) -> None:
        """Save the unclipped gradient of the task loss, before the penalty's is added."""
        step.cache["gradients"] = step.gradients
        super().on_after_backward(step)

    def on_before_optimizer_step(self, step: Step) -> None:
        """Save the parameters before the optimizer changes them."""
        step.cache["params"] = step.params

    def on_after_optimizer_step(self, step: Step) -> None:
        """Update the path integral: omega <- omega - g delta theta."""
        path = jax.tree.map(
            lambda omega, g, after, before: omega - g * (after - before),
            step.state.path,
            step.cache["gradients"],
            step.params,
            step.cache["params"],
        )
        step.state = step.state._replace(path=path)

    def calculate_parameter_importance(self) -> Arrays:
        """Return omega / (Delta^2 + xi), with Delta the change since the start of the task."""
        args = (self.state.path, self.params, self.state.anchor, jnp.float32(self.xi))
        importance = self.engine.compiled("importance", _damped, args)(*args)
        return _non_negative(importance) if self.clip == "increment" else importance

    def consolidate(self, importance: Arrays) -> SIState:
        """Add the task's importance, move the anchor and reset the path integral."""
        state = super().consolidate(importance)
        total = _non_negative(state.importance) if self.clip == "total" else state.importance
        return state._replace(importance=total, path=jax.tree.map(jnp.zeros_like, state.path))


def _damped(path: Arrays, params: Arrays, start: Arrays, xi: Array) -> Arrays:
    return jax.tree.map(lambda omega, p, a: omega / ((p - a) ** 2 + xi), path, params, start)


def _non_negative(importance: Arrays) -> Arrays:
    return jax.tree.map(lambda omega: jnp.maximum(omega, 0.0), importance)

"""RegularizationAlgorithm on JAX."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base import Step
from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.regularization import PenaltyState, RegularizationOptions
from seqrun.formulas.jax import penalty_gradient


@dataclass(kw_only=True, eq=False)
class RegularizationAlgorithm(RegularizationOptions, JaxBaseAlgorithm):
    """Penalise moving away from an anchor; a method implements `calculate_parameter_importance`."""

    def calculate_parameter_importance(self) -> dict[str, Array]:
        """Return parameter name -> importance of the task that has just ended."""
        raise NotImplementedError

    def consolidate(self, importance: dict[str, Array]) -> Any:
        """Return the state after a task: add its importance, and anchor at the parameters."""
        total = jax.tree.map(jnp.add, self.state.importance, importance)
        return self.state._replace(anchor=self.params, importance=total)

    def initial_state(self) -> Any:
        """Return zero importance, anchored at the current parameters."""
        return PenaltyState(self.params, jax.tree.map(jnp.zeros_like, self.params))

    def on_after_backward(self, step: Step) -> None:
        """Add the penalty's gradient to the task loss's."""
        state, coefficient = step.state, step.hparams["penalty"]
        offset = getattr(state, "offset", None)
        added = penalty_gradient(step.params, state.anchor, state.importance, coefficient, offset)
        step.gradients = jax.tree.map(jnp.add, step.gradients, added)

    def on_after_task(self) -> None:
        """Compute the task's importance, in eval mode, and merge it into the state."""
        started = time.perf_counter()
        timing = self.progress.timing
        compiled = timing["compile_seconds"]
        importance = self.calculate_parameter_importance()
        self.state = jax.block_until_ready(self.consolidate(importance))
        compiled = timing["compile_seconds"] - compiled
        spent = time.perf_counter() - started - compiled
        self.progress.add_seconds("importance_seconds", spent)

"""RegularizationAlgorithm on JAX."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.training.step import Step
from seqrun.algorithms.regularization import PenaltyState, RegularizationOptions
from seqrun.formulas.jax import penalty_gradient


@dataclass(kw_only=True, eq=False)
class RegularizationAlgorithm(RegularizationOptions, JaxBaseAlgorithm):
    """Penalise moving away from an anchor; a method implements `calculate_parameter_importance`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_penalty()

    def calculate_parameter_importance(self) -> dict[str, Array]:
        """Return parameter name -> importance of the task that has just ended."""
        raise NotImplementedError

    def consolidate(self, importance: dict[str, Array]) -> Any:
        """Return the state after a task: importance summed, anchor at the parameters."""
        total = jax.tree.map(jnp.add, self.state.importance, importance)
        return self.state._replace(anchor=self.params, importance=total)

    def initial_state(self) -> Any:
        """Return a zero importance, anchored at the initial weights."""
        return PenaltyState(self.params, jax.tree.map(jnp.zeros_like, self.params))

    def hyper(self) -> dict[str, float]:
        """Add lambda * s."""
        return super().hyper() | {"penalty": self.penalty_coefficient}

    def on_after_backward(self, algorithm: Any, step: Step) -> None:
        """Add the penalty's gradient to the task loss's."""
        pull = penalty_gradient(
            step.params, step.state.anchor, step.state.importance, step.hyper["penalty"]
        )
        step.gradients = jax.tree.map(jnp.add, step.gradients, pull)

    def on_after_task(self, algorithm: Any) -> None:
        """Measure what the task needs, in eval mode, and protect it."""
        started = time.perf_counter()
        compiled = self.timing["compile_seconds"]
        importance = self.calculate_parameter_importance()
        self.state = jax.block_until_ready(self.consolidate(importance))
        compiled = self.timing["compile_seconds"] - compiled
        spent = time.perf_counter() - started - compiled
        self.timing["importance_seconds"] = self.timing.get("importance_seconds", 0.0) + spent

"""RegularizationAlgorithm on PyTorch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrun.algorithms.base import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.regularization import PenaltyState, RegularizationOptions
from seqrun.formulas.torch import penalty_gradient


@dataclass(kw_only=True, eq=False)
class RegularizationAlgorithm(RegularizationOptions, PyTorchBaseAlgorithm):
    """Penalise moving away from an anchor; a method implements `calculate_parameter_importance`."""

    def calculate_parameter_importance(self) -> dict[str, Tensor]:
        """Return parameter name -> importance of the task that has just ended."""
        raise NotImplementedError

    def consolidate(self, importance: dict[str, Tensor]) -> Any:
        """Return the state after a task: add its importance, and anchor at the parameters."""
        total = {n: self.state.importance[n] + omega for n, omega in importance.items()}
        anchor = {n: p.detach().clone() for n, p in self.params.items()}
        return self.state._replace(anchor=anchor, importance=total)

    def initial_state(self) -> Any:
        """Return zero importance, anchored at the current parameters."""
        anchor = {n: p.detach().clone() for n, p in self.params.items()}
        return PenaltyState(anchor, {n: torch.zeros_like(p) for n, p in anchor.items()})

    @torch.no_grad()
    def on_after_backward(self, step: Step) -> None:
        """Add the penalty's gradient to the task loss's."""
        gradients = list(step.gradients.values())
        state, coefficient = step.state, step.hparams["penalty"]
        offset = getattr(state, "offset", None)
        added = penalty_gradient(step.params, state.anchor, state.importance, coefficient, offset)
        torch._foreach_add_(gradients, added)

    def on_after_task(self) -> None:
        """Compute the task's importance, in eval mode, and merge it into the state."""
        started = time.perf_counter()
        with self.engine.evaluating():
            importance = self.calculate_parameter_importance()
        self.state = self.consolidate(importance)
        self.progress.add_seconds("importance_seconds", time.perf_counter() - started)

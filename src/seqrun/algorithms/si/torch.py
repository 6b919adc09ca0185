"""SI on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrun.algorithms.base import Step
from seqrun.algorithms.regularization.torch import RegularizationAlgorithm
from seqrun.algorithms.si import SIOptions, SIState

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class SI(SIOptions, RegularizationAlgorithm):
    """Synaptic Intelligence (Zenke et al. 2017)."""

    def initial_state(self) -> SIState:
        anchor, importance = super().initial_state()
        return SIState(anchor, importance, {n: torch.zeros_like(p) for n, p in anchor.items()})

    @torch.no_grad()
    def on_after_backward(self, step: Step) -> None:
        """Save the unclipped gradient of the task loss, before the penalty's is added in place."""
        step.cache["gradients"] = [g.clone() for g in step.gradients.values()]
        super().on_after_backward(step)

    @torch.no_grad()
    def on_before_optimizer_step(self, step: Step) -> None:
        """Save the parameters before the optimizer changes them in place."""
        step.cache["params"] = [p.clone() for p in step.params.values()]

    @torch.no_grad()
    def on_after_optimizer_step(self, step: Step) -> None:
        """Update the path integral: omega <- omega - g delta theta."""
        delta = torch._foreach_sub(list(step.params.values()), step.cache["params"])
        path = torch._foreach_addcmul(
            list(step.state.path.values()), step.cache["gradients"], list(delta), value=-1.0
        )
        step.state = step.state._replace(path=dict(zip(step.state.path, path, strict=True)))

    @torch.no_grad()
    def calculate_parameter_importance(self) -> Tensors:
        """Return omega / (Delta^2 + xi), with Delta the change since the start of the task."""
        importance = {}
        for name, parameter in self.params.items():
            change = parameter - self.state.anchor[name]
            importance[name] = self.state.path[name] / (change**2 + self.xi)
        return _non_negative(importance) if self.clip == "increment" else importance

    def consolidate(self, importance: Tensors) -> SIState:
        """Add the task's importance, move the anchor and reset the path integral."""
        state = super().consolidate(importance)
        total = _non_negative(state.importance) if self.clip == "total" else state.importance
        path = {n: torch.zeros_like(p) for n, p in state.path.items()}
        return state._replace(importance=total, path=path)


def _non_negative(importance: Tensors) -> Tensors:
    return {n: omega.clamp(min=0.0) for n, omega in importance.items()}

"""Optimizers for PyTorch: torch's own update rules with explicit state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from seqrun.optimizers.base import AdamOptions, AdamState, SGDOptions, SGDState

Tensors = dict[str, Tensor]


def _zeros(params: Tensors) -> Tensors:
    return {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}


@dataclass(kw_only=True, eq=False)
class SGD(SGDOptions):
    """Stochastic gradient descent with momentum and coupled weight decay."""

    backend: ClassVar[str] = "torch"

    def init(self, params: Tensors) -> SGDState:
        return SGDState(_zeros(params) if self.momentum else {})

    @torch.no_grad()
    def update(
        self, gradients: Tensors, opt_state: SGDState, params: Tensors, hparams: dict[str, float]
    ) -> tuple[Tensors, SGDState]:
        """Change `params` and `opt_state` in place and return them."""
        values = list(params.values())
        sgd(
            values,
            [gradients[name] for name in params],
            list(opt_state.momentum_buffer.values()) or [None] * len(values),
            foreach=True,
            weight_decay=hparams["weight_decay"],
            momentum=hparams["momentum"],
            lr=hparams["lr"],
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )
        return params, opt_state


@dataclass(kw_only=True, eq=False)
class Adam(AdamOptions):
    """Adam with coupled weight decay."""

    backend: ClassVar[str] = "torch"

    def init(self, params: Tensors) -> AdamState:
        count = torch.zeros((), device=next(iter(params.values())).device)
        return AdamState(_zeros(params), _zeros(params), count)

    @torch.no_grad()
    def update(
        self, gradients: Tensors, opt_state: AdamState, params: Tensors, hparams: dict[str, float]
    ) -> tuple[Tensors, AdamState]:
        """Change `params` and `opt_state` in place and return them."""
        counts = [opt_state.count.clone() for _ in params]  # torch wants one per parameter
        adam(
            list(params.values()),
            [gradients[name] for name in params],
            list(opt_state.exp_avg.values()),
            list(opt_state.exp_avg_sq.values()),
            [],
            counts,
            foreach=True,
            amsgrad=False,
            # Otherwise each count is copied to the host, and lr may not be a tensor.
            capturable=torch.compiler.is_compiling() or opt_state.count.is_cuda,
            beta1=hparams["beta1"],
            beta2=hparams["beta2"],
            lr=hparams["lr"],
            weight_decay=hparams["weight_decay"],
            eps=hparams["eps"],
            maximize=False,
        )
        return params, opt_state._replace(count=counts[0])

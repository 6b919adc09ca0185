"""Optimizers for PyTorch: torch's own update rules with explicit state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from seqrun.optimizers.base import (
    AdagradOptions,
    AdagradState,
    AdamOptions,
    AdamState,
    AdamWOptions,
    RMSpropOptions,
    RMSpropState,
    SGDOptions,
    SGDState,
)

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


@dataclass(kw_only=True, eq=False)
class AdamW(AdamWOptions, Adam):
    """Adam with decoupled weight decay."""

    @torch.no_grad()
    def update(
        self, gradients: Tensors, opt_state: AdamState, params: Tensors, hparams: dict[str, float]
    ) -> tuple[Tensors, AdamState]:
        """Change `params` and `opt_state` in place and return them."""
        for p in params.values() if self.weight_decay else ():
            p.mul_(1.0 - hparams["lr"] * hparams["weight_decay"])
        return super().update(gradients, opt_state, params, hparams | {"weight_decay": 0.0})


def _with_weight_decay(gradients: Tensors, params: Tensors, weight_decay: float) -> Tensors:
    return {name: g + weight_decay * params[name] for name, g in gradients.items()}


@dataclass(kw_only=True, eq=False)
class RMSprop(RMSpropOptions):
    """RMSprop with momentum and coupled weight decay."""

    backend: ClassVar[str] = "torch"

    def init(self, params: Tensors) -> RMSpropState:
        return RMSpropState(_zeros(params), _zeros(params) if self.momentum else {})

    @torch.no_grad()
    def update(
        self,
        gradients: Tensors,
        opt_state: RMSpropState,
        params: Tensors,
        hparams: dict[str, float],
    ) -> tuple[Tensors, RMSpropState]:
        """Change `params` and `opt_state` in place and return them."""
        if self.weight_decay:
            gradients = _with_weight_decay(gradients, params, hparams["weight_decay"])
        for name, p in params.items():
            g, square = gradients[name], opt_state.square_avg[name]
            square.mul_(hparams["alpha"]).addcmul_(g, g, value=1.0 - hparams["alpha"])
            direction = g / square.sqrt().add_(hparams["eps"])
            if self.momentum:
                buffer = opt_state.momentum_buffer[name]
                direction = buffer.mul_(hparams["momentum"]).add_(direction)
            p.sub_(hparams["lr"] * direction)
        return params, opt_state


@dataclass(kw_only=True, eq=False)
class Adagrad(AdagradOptions):
    """Adagrad with coupled weight decay."""

    backend: ClassVar[str] = "torch"

    def init(self, params: Tensors) -> AdagradState:
        start = self.initial_accumulator_value
        return AdagradState({n: torch.full_like(p, start) for n, p in _zeros(params).items()})

    @torch.no_grad()
    def update(
        self,
        gradients: Tensors,
        opt_state: AdagradState,
        params: Tensors,
        hparams: dict[str, float],
    ) -> tuple[Tensors, AdagradState]:
        """Change `params` and `opt_state` in place and return them."""
        if self.weight_decay:
            gradients = _with_weight_decay(gradients, params, hparams["weight_decay"])
        for name, p in params.items():
            g = gradients[name]
            root = opt_state.sum[name].addcmul_(g, g).sqrt()
            p.sub_(hparams["lr"] * (g / root.add_(hparams["eps"])))
        return params, opt_state

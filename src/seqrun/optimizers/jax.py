"""Optimizers for JAX: optax's update rules with explicit state and traced scalars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

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

Arrays = dict[str, Array]


def _zeros(params: Arrays) -> Arrays:
    return jax.tree.map(jnp.zeros_like, params)


def _with_weight_decay(gradients: Arrays, params: Arrays, weight_decay: Any) -> Arrays:
    return jax.tree.map(lambda g, p: g + weight_decay * p, gradients, params)


def _gradient_step(params: Arrays, direction: Arrays, lr: Any) -> Arrays:
    return jax.tree.map(lambda p, d: p - lr * d, params, direction)


@dataclass(kw_only=True, eq=False)
class SGD(SGDOptions):
    """Stochastic gradient descent with momentum and coupled weight decay."""

    backend: ClassVar[str] = "jax"

    def init(self, params: Arrays) -> SGDState:
        return SGDState(_zeros(params) if self.momentum else {})

    def update(
        self, gradients: Arrays, opt_state: SGDState, params: Arrays, hparams: dict[str, Array]
    ) -> tuple[Arrays, SGDState]:
        if self.weight_decay:
            gradients = _with_weight_decay(gradients, params, hparams["weight_decay"])
        if self.momentum:
            rule = optax.trace(decay=hparams["momentum"], nesterov=self.nesterov)
            trace = optax.TraceState(opt_state.momentum_buffer)
            gradients, trace = rule.update(gradients, trace)
            opt_state = SGDState(trace.trace)
        return _gradient_step(params, gradients, hparams["lr"]), opt_state


@dataclass(kw_only=True, eq=False)
class Adam(AdamOptions):
    """Adam with coupled weight decay."""

    backend: ClassVar[str] = "jax"

    def init(self, params: Arrays) -> AdamState:
        return AdamState(_zeros(params), _zeros(params), jnp.zeros((), jnp.float32))

    def update(
        self, gradients: Arrays, opt_state: AdamState, params: Arrays, hparams: dict[str, Array]
    ) -> tuple[Arrays, AdamState]:
        if self.weight_decay:
            gradients = _with_weight_decay(gradients, params, hparams["weight_decay"])
        rule = optax.scale_by_adam(b1=hparams["beta1"], b2=hparams["beta2"], eps=hparams["eps"])
        moments = optax.ScaleByAdamState(
            opt_state.count.astype(jnp.int32), opt_state.exp_avg, opt_state.exp_avg_sq
        )
        direction, moments = rule.update(gradients, moments)
        state = AdamState(moments.mu, moments.nu, moments.count.astype(jnp.float32))
        return _gradient_step(params, direction, hparams["lr"]), state


@dataclass(kw_only=True, eq=False)
class AdamW(AdamWOptions, Adam):
    """Adam with decoupled weight decay."""

    def update(
        self, gradients: Arrays, opt_state: AdamState, params: Arrays, hparams: dict[str, Array]
    ) -> tuple[Arrays, AdamState]:
        if self.weight_decay:
            kept = 1.0 - hparams["lr"] * hparams["weight_decay"]
            params = jax.tree.map(lambda p: p * kept, params)
        no_decay = {"weight_decay": jnp.zeros(())}
        return super().update(gradients, opt_state, params, hparams | no_decay)


@dataclass(kw_only=True, eq=False)
class RMSprop(RMSpropOptions):
    """RMSprop with momentum and coupled weight decay."""

    backend: ClassVar[str] = "jax"

    def init(self, params: Arrays) -> RMSpropState:
        return RMSpropState(_zeros(params), _zeros(params) if self.momentum else {})

    def update(
        self, gradients: Arrays, opt_state: RMSpropState, params: Arrays, hparams: dict[str, Array]
    ) -> tuple[Arrays, RMSpropState]:
        alpha, eps = hparams["alpha"], hparams["eps"]
        if self.weight_decay:
            gradients = _with_weight_decay(gradients, params, hparams["weight_decay"])
        square = jax.tree.map(
            lambda s, g: alpha * s + (1.0 - alpha) * g * g, opt_state.square_avg, gradients
        )
        direction = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), gradients, square)
        buffer = opt_state.momentum_buffer
        if self.momentum:
            momentum = hparams["momentum"]
            direction = buffer = jax.tree.map(lambda b, d: momentum * b + d, buffer, direction)
        return _gradient_step(params, direction, hparams["lr"]), RMSpropState(square, buffer)


@dataclass(kw_only=True, eq=False)
class Adagrad(AdagradOptions):
    """Adagrad with coupled weight decay."""

    backend: ClassVar[str] = "jax"

    def init(self, params: Arrays) -> AdagradState:
        start = self.initial_accumulator_value
        return AdagradState(jax.tree.map(lambda p: jnp.full_like(p, start), params))

    def update(
        self, gradients: Arrays, opt_state: AdagradState, params: Arrays, hparams: dict[str, Array]
    ) -> tuple[Arrays, AdagradState]:
        if self.weight_decay:
            gradients = _with_weight_decay(gradients, params, hparams["weight_decay"])
        total = jax.tree.map(lambda s, g: s + g * g, opt_state.sum, gradients)
        eps = hparams["eps"]
        direction = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), gradients, total)
        return _gradient_step(params, direction, hparams["lr"]), AdagradState(total)

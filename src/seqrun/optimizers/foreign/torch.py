"""An optimizer of torch.optim, or any other subclass of torch.optim.Optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqrun.checks import ConfigError, first_line
from seqrun.optimizers.foreign import ForeignOptimizer, ForeignState

Tensors = dict[str, Tensor]
GROUP = "group"
"""Name of the numbers that an optimizer keeps for all parameters together."""


@dataclass(kw_only=True, eq=False)
class Optimizer(ForeignOptimizer):
    """A torch.optim.Optimizer, whose state is taken out after each step and put in before it.

    Its state is made at its first step. The arrays of a state that has not started are therefore
    those of a step with zero gradients on a copy, set to zero.

    Raises:
        ConfigError: it needs a closure, or refuses its arguments.
    """

    backend: ClassVar[str] = "torch"

    _made: Any = field(default=None, init=False, repr=False)
    _latest: Any = field(default=None, init=False, repr=False)
    _kinds: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        made = self._make([torch.nn.Parameter(torch.zeros(2, 2))])
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ConfigError(
                f"optimizer._target_={self.target}: needs a closure that evaluates the loss "
                "several times a step, which is not offered"
            )
        self.init({"any": torch.nn.Parameter(torch.zeros(2, 2))})

    def _make(self, params: Iterable[Tensor]) -> torch.optim.Optimizer:
        try:
            return self.make(list(params), lr=self.lr_of(1))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer ({self.target}): {first_line(error)}") from None

    def check_params(self, params: Tensors) -> None:
        self._make(params.values())

    def init(self, params: Tensors) -> ForeignState:
        self._made = self._latest = None
        first = next(iter(params.values()))
        if first.is_meta:  # only their size is asked for: about that of two arrays per parameter
            zeros = {n: torch.zeros_like(p, requires_grad=False) for n, p in params.items()}
            return ForeignState(torch.zeros((), dtype=torch.int32), {"a": zeros, "b": zeros})
        copies = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
        probe = self._make(copies.values())
        for copy in copies.values():
            copy.grad = torch.zeros_like(copy)
        try:
            probe.step()
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"optimizer ({self.target}): {first_line(error)}") from None
        self._kinds = {}
        values = self._taken_out(probe, copies)
        empty = {
            key: {name: torch.zeros_like(value) for name, value in by_name.items()}
            for key, by_name in values.items()
        }
        return ForeignState(torch.zeros((), dtype=torch.int32), empty)

    def update(
        self,
        gradients: Tensors,
        opt_state: ForeignState,
        params: Tensors,
        hparams: dict[str, float],
    ) -> tuple[Tensors, ForeignState]:
        """Change `params` in place and return them with the new state."""
        if self._made is None or opt_state is not self._latest:
            self._made = self._make(params.values())
            if int(opt_state.started):
                self._put_in(self._made, params, opt_state.values)
        for group in self._made.param_groups:
            group["lr"] = float(hparams["lr"])
        for name, p in params.items():
            p.grad = gradients[name]
        self._made.step()
        for p in params.values():
            p.grad = None
        started = torch.ones((), dtype=torch.int32)
        self._latest = ForeignState(started, self._taken_out(self._made, params))
        return params, self._latest

    def _taken_out(self, made: torch.optim.Optimizer, params: Tensors) -> dict[str, Tensors]:
        """Return the optimizer's state: key -> parameter's name -> array."""
        values: dict[str, Tensors] = {}
        found = [(k, n, v) for n, p in params.items() for k, v in made.state.get(p, {}).items()]
        found += [(GROUP, key, v) for key, v in made.param_groups[0].items() if key != "lr"]
        for key, name, value in found:
            if isinstance(value, (Tensor, int, float)) and not isinstance(value, bool):
                self._kinds[f"{key}/{name}"] = _kind(value)
                values.setdefault(key, {})[name] = _array(value)
        return values

    def _put_in(
        self, made: torch.optim.Optimizer, params: Tensors, values: dict[str, Tensors]
    ) -> None:
        for key, by_name in values.items():
            for name, value in by_name.items():
                kind = self._kinds[f"{key}/{name}"]
                restored: Any = value.to(kind) if isinstance(kind, torch.device) else kind(value)
                if key == GROUP:
                    made.param_groups[0][name] = restored
                else:
                    made.state[params[name]][key] = restored


def _kind(value: Any) -> Any:
    """Return the device of an array, or the type of a number."""
    return value.device if isinstance(value, Tensor) else type(value)


def _array(value: Any) -> Tensor:
    """Return an array, or a number as one without loss of digits."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)

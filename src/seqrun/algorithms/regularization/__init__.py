"""Regularisation: penalise moving away from an anchor, parameter by parameter.

Loss: CE + (lambda * s) * sum_i Omega_i (theta_i - theta*_i)^2, with Omega the importance and
theta* the anchor. A method implements `calculate_parameter_importance`, and names its option
lambda in `coefficient_name`. The penalty's gradient, 2 lambda s Omega (theta - theta*), is added to
that of the task loss, so neither the logged task loss nor the gradients from which importance is
computed contain the penalty.

A step on the penalty is stable only while lr * 2 lambda s Omega_i < 2. Beyond, it overshoots the
anchor further with every step until the loss is NaN, unless the gradient is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.checks import at_least
from seqrun.training.options import TrainingOptions


class PenaltyState(NamedTuple):
    """State of a regularisation method.

    Attributes:
        anchor: parameter name -> theta*.
        importance: parameter name -> Omega >= 0; zero until the first task has ended.
    """

    anchor: dict[str, Any]
    importance: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class RegularizationOptions(BaseAlgorithm):
    """Options of all regularisation methods.

    Args:
        penalty_scale: the factor s, >= 0.

    Raises:
        ConfigError: a value out of range.
    """

    penalty_scale: float = 1.0

    coefficient_name: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.coefficient_name, getattr(self, self.coefficient_name), 0.0)
        at_least("penalty_scale", self.penalty_scale, 0.0)

    @property
    def penalty_coefficient(self) -> float:
        """Lambda times s."""
        return float(getattr(self, self.coefficient_name) * self.penalty_scale)

    def hparams(self) -> dict[str, float]:
        """Add the penalty's coefficient, lambda * s."""
        return super().hparams() | {"penalty": self.penalty_coefficient}


def with_clip(training: TrainingOptions, clip: float | None) -> TrainingOptions:
    """Return `training` with a method's own `clip` as its `grad_clip`, if it has none.

    Raises:
        ConfigError: `clip` is neither None nor > 0.
    """
    if clip is not None:
        at_least("clip", clip, 0.0, strictly=True)
    return training if training.grad_clip is not None else replace(training, grad_clip=clip)


def clips(options: Mapping[str, Any]) -> bool:
    """Return True if an algorithm's `clip` takes effect."""
    return options["clip"] is not None and options["training"].grad_clip is None

"""Regularisation: penalise moving away from an anchor, parameter by parameter.

Loss: CE + (lambda * s) * sum_i Omega_i (theta_i - theta*_i)^2, with Omega the importance and
theta* the anchor. A method implements `calculate_parameter_importance`, and names its option
lambda in `coefficient_name`. The penalty's gradient, 2 lambda s Omega (theta - theta*), is added to
that of the task loss, so neither the logged task loss nor the gradients from which importance is
computed contain the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.checks import at_least


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

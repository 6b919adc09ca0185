"""SI: Synaptic Intelligence.

Paper: Zenke et al. 2017, "Continual learning through synaptic intelligence", 1703.04200.
Path integral (equation 3), at every step: omega_i <- omega_i - g_i delta theta_i, with g the
gradient of the task loss and delta theta the change that the optimizer makes.
Importance (equation 5), at the end of a task: Omega_i <- Omega_i + omega_i / (Delta_i^2 + xi), with
Delta the change over the task; omega <- 0.
Loss (equation 4): CE + c sum_i Omega_i (theta_i - theta*_i)^2, with c = `si_lambda`.

Differs from the paper: Omega is clipped at 0 (`clip` = "total"), as in the authors' code; "none"
is the paper's equation. The optimizer's state is fresh in each task (training.reinit_optimizer), as
in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.algorithms.regularization import RegularizationOptions
from seqrun.checks import at_least, one_of


class SIState(NamedTuple):
    """State of SI.

    Attributes:
        anchor: parameter name -> theta*, the parameters at the task's start.
        importance: parameter name -> Omega; >= 0 unless `clip` is "none".
        path: parameter name -> omega, the decrease of the task loss so far that is due to it.
    """

    anchor: dict[str, Any]
    importance: dict[str, Any]
    path: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class SIOptions(RegularizationOptions):
    """Penalise moving parameters in proportion to how much they lowered past tasks' losses.

    Omega_i = sum over past tasks of omega_i / (Delta_i^2 + xi), omega_i = - sum over steps of
    g_i delta theta_i. Zenke et al. 2017 (1703.04200), equations 3 to 5.

    Args:
        si_lambda: strength c of the penalty, >= 0; 0 is naive.
        xi: damping, > 0, in units of a squared parameter.
        clip: "total" (Omega at least 0 after each task, as in the authors' code), "increment" (each
            task's contribution at least 0) or "none" (Omega may be negative).
        penalty_scale: factor s of the penalty si_lambda * s * Omega (theta - theta*)^2; 1 in the
            paper.

    Raises:
        ConfigError: a value out of range.
    """

    si_lambda: float = 0.1
    xi: float = 0.1
    clip: str = "total"

    name: ClassVar[str] = "si"
    coefficient_name: ClassVar[str] = "si_lambda"
    vectorizable: ClassVar[tuple[str, ...]] = ("si_lambda", "penalty_scale", "xi")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("xi", self.xi, 0.0, strictly=True)
        one_of("clip", self.clip, ("total", "increment", "none"))

"""MAS: Memory Aware Synapses.

Paper: Aljundi et al. 2018, "Memory aware synapses: learning what (not) to forget", 1711.09601.
Importance, at the end of the task on its inputs without labels (equation 2, for the squared L2
norm of the outputs): Omega_i = (1/N) sum_n |d ||F(x_n)||_2^2 / d theta_i|, summed over tasks.
Loss (equation 3): CE + lambda sum_i Omega_i (theta_i - theta*_i)^2.

Differs from the paper: F are only the outputs that the task's softmax runs over (its own head in
scenario "task", the classes seen so far in "class"), so outputs that were never trained are left
out. Importance is of training inputs, not of unlabelled test data, and of the whole network's
outputs, not layer by layer. The authors' code sums a batch's norms before the absolute value
(`importance_batch_size` = 200). By default the gradient is clipped (`clip`), since the penalty is
unstable in networks whose outputs are sensitive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from seqrun.algorithms.regularization import RegularizationOptions, clips, with_clip
from seqrun.checks import Numerics, added, changed, one_of, whole, within


def _numerics(options: Mapping[str, Any]) -> int:
    """Return 2 for "ema", which keeps the first task's importance whole, or if it clips."""
    is_ema = options["accumulate"] == "ema" and options["alpha"] and options["mas_lambda"]
    return 2 if is_ema or clips(options) else 1


@dataclass(kw_only=True, eq=False)
class MASOptions(RegularizationOptions):
    """Penalise moving parameters in proportion to how much the outputs depend on them.

    Omega_i = (1/N) sum_n |d ||F(x_n)||_2^2 / d theta_i|, per sample, without labels, in eval mode.
    Aljundi et al. 2018 (1711.09601), equations 2 and 3. The state is PenaltyState.

    Args:
        mas_lambda: strength lambda of the penalty, >= 0; 0 is naive (with `clip` = None).
        accumulate: Omega <- "sum": Omega + Omega_t; "ema": alpha Omega + (1 - alpha) Omega_t, from
            the first task's; "replace": Omega_t.
        alpha: decay rate of "ema", in [0, 1).
        importance_batch_size: None = per sample; k >= 1 = (1/N) sum over batches of
            |d (sum of a batch's k norms) / d theta_i|, as in the authors' code, with k = 200.
        penalty_scale: factor s of the penalty mas_lambda * s * Omega (theta - theta*)^2; 1 in the
            paper.
        clip: `training.grad_clip` where that is None: largest global norm of the gradient, the
            penalty's included, > 0; None = no clipping.

    Raises:
        ConfigError: a value out of range.
    """

    mas_lambda: float = changed(1.0)
    accumulate: str = "sum"
    alpha: float = 0.5
    importance_batch_size: int | None = None
    clip: float | None = added(1.0, before=None)

    name: ClassVar[str] = "mas"
    numerics: ClassVar[Numerics] = staticmethod(_numerics)
    coefficient_name: ClassVar[str] = "mas_lambda"
    vectorizable: ClassVar[tuple[str, ...]] = ("mas_lambda", "penalty_scale", "alpha", "clip")

    def __post_init__(self) -> None:
        self.training = with_clip(self.training, self.clip)
        super().__post_init__()
        one_of("accumulate", self.accumulate, ("sum", "ema", "replace"))
        within("alpha", self.alpha, 0.0, 1.0, open_high=True)
        if self.importance_batch_size is not None:
            whole("importance_batch_size", self.importance_batch_size, 1)

    @property
    def weights(self) -> tuple[float, float]:
        """The factors of the past importance and of the task's."""
        past = self.alpha if self.task > 1 else 0.0
        return {
            "sum": (1.0, 1.0),
            "ema": (past, 1.0 - past),
            "replace": (0.0, 1.0),
        }[self.accumulate]

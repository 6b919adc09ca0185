"""EWC and online EWC: Elastic Weight Consolidation.

Paper: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks",
1612.00796, equation 3: L(theta) = L_B(theta) + sum_i lambda/2 F_i (theta_i - theta*_A,i)^2,
one such penalty per past task.

The penalties of all past tasks are merged into one by completing the square: F <- F + F_t and
theta* <- theta* + F_t / (F + F_t) (theta - theta*), exactly theta where F is 0. It equals their sum
up to a constant, which has no gradient. theta* is kept as the latest parameters and an offset.

Differs from the paper: nothing with `fisher` = "exact" or "sample"; the default, "empirical",
squares the gradient at the true label, as most implementations do. lambda is not comparable
between the variants. `fisher_running` is A-GEM's authors' EWC: one penalty, that of the latest
task. Differs from their code: an update includes the gradient of its own step, and a task that is
too short for an update makes one at its end. By default the gradient is clipped (`clip`), since
the penalty is unstable in networks whose Fisher information is large (with BatchNorm, up to 14).

Online EWC: Schwarz et al. 2018, "Progress & Compress: a scalable framework for continual
learning", 1805.06370, section 4: one penalty, anchored at the latest task's parameters, with
F <- gamma F + F_t. Differs from the paper: the penalty is weighted by F, not by gamma F (lambda can
absorb the factor); F_t is not normalised by default, as in the implementations that results are
compared with (`fisher_normalize` does so); and there is no knowledge base in addition to the
network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.algorithms.regularization import RegularizationOptions, clips, with_clip
from seqrun.checks import ConfigError, Numerics, added, boolean, one_of, whole, within

FISHERS = ("exact", "sample", "pred", "empirical", "batched")
RUNNING_DECAY = 0.1  # weight of the old estimate; their "decay" of 0.9 is that of the new squares


class EWCState(NamedTuple):
    """State of EWC.

    Attributes:
        anchor: parameter name -> theta* without the offset: the parameters after the latest task.
        importance: parameter name -> F >= 0, of all past tasks.
        squares: parameter name -> sum of squared batch gradients since the last update of the
            running Fisher, or the task's start; {} unless `fisher_running`.
        running: parameter name -> running Fisher of all steps so far; {} unless `fisher_running`.
        count: int32 scalar, training steps of the current task; None unless `fisher_running`.
        offset: parameter name -> theta* - anchor; {} if only the latest task has a penalty.
    """

    anchor: dict[str, Any]
    importance: dict[str, Any]
    squares: dict[str, Any]
    running: dict[str, Any]
    count: Any
    offset: dict[str, Any]


def _numerics(options: Mapping[str, Any]) -> int:
    """Return 2 if there is a penalty (another anchor or running Fisher), or `clip` takes effect."""
    has_penalty = options["ewc_lambda"] and options["penalty_scale"]
    return 2 if has_penalty or clips(options) else 1


def _online_numerics(options: Mapping[str, Any]) -> int:
    """Return 2 as EWC's, but a penalty counts only with the running Fisher."""
    return _numerics(options) if options["fisher_running"] or clips(options) else 1


@dataclass(kw_only=True, eq=False)
class EWCOptions(RegularizationOptions):
    """Penalise moving away from past tasks' solutions in proportion to the Fisher information.

    F_i = E_x E_y [(d log p(y|x) / d theta_i)^2], per sample, averaged over samples, at the end of
    the task, in eval mode. Kirkpatrick et al. 2017 (1612.00796), equation 3.

    Args:
        ewc_lambda: strength lambda of the penalty, >= 0; 0 is naive (with `clip` = None).
        fisher: which label y: "exact" (all classes, weighted by p(y|x)), "sample" (one drawn from
            p(y|x)), "pred" (the most probable), "empirical" (the true one), or "batched" (the
            square of a training batch's mean gradient at the true labels).
        fisher_weight: "none", or "p" to weight each squared gradient by p(y|x) (Mammoth).
        fisher_running: estimate F during training instead, as the authors of A-GEM do: every few
            steps F_run <- 0.1 F_run + 0.9 (mean of the squared batch gradients since the last
            update). It goes on over all tasks. At the end of a task F is F_run, min-max scaled to
            [0, 1] over all parameters: only the latest task's penalty is kept.
        fisher_running_every: training steps of a task between these updates, >= 1; a shorter task
            ends with one. A-GEM's authors: 10 on MNIST, 50 on CIFAR.
        fisher_samples: training samples that F is averaged over, >= 1; None = all.
        fisher_batch_size: samples of each batch of "batched", >= 1; None = as in training.
        penalty_scale: factor s of the penalty lambda * s * F (theta - theta*)^2; 1/2 in the paper.
        clip: `training.grad_clip` where that is None: largest global norm of the gradient, the
            penalty's included, > 0; None = no clipping.

    Raises:
        ConfigError: a value out of range, or options that exclude each other.
    """

    ewc_lambda: float = 30.0
    fisher: str = "empirical"
    fisher_weight: str = "none"
    fisher_running: bool = False
    fisher_samples: int | None = None
    fisher_batch_size: int | None = None
    penalty_scale: float = 0.5
    fisher_running_every: int = added(10)
    clip: float | None = added(1.0, before=None)

    name: ClassVar[str] = "ewc"
    numerics: ClassVar[Numerics] = staticmethod(_numerics)
    coefficient_name: ClassVar[str] = "ewc_lambda"
    vectorizable: ClassVar[tuple[str, ...]] = ("ewc_lambda", "penalty_scale", "clip")

    def __post_init__(self) -> None:
        self.training = with_clip(self.training, self.clip)
        super().__post_init__()
        one_of("fisher", self.fisher, FISHERS)
        one_of("fisher_weight", self.fisher_weight, ("none", "p"))
        boolean("fisher_running", self.fisher_running)
        whole("fisher_running_every", self.fisher_running_every, 1)
        if self.fisher_samples is not None:
            whole("fisher_samples", self.fisher_samples, 1)
        if self.fisher_batch_size is not None:
            whole("fisher_batch_size", self.fisher_batch_size, 1)
            if self.fisher != "batched" or self.fisher_running:
                raise ConfigError(
                    f"fisher_batch_size={self.fisher_batch_size}: must be null unless "
                    "fisher='batched' without fisher_running"
                )
        if self.fisher_weight == "p" and self.fisher in ("exact", "batched"):
            raise ConfigError(
                f"fisher_weight='p': must be none with fisher={self.fisher!r}, which "
                + (
                    "has that weight already"
                    if self.fisher == "exact"
                    else "has no p(y|x) of a sample"
                )
            )

    @property
    def has_offset(self) -> bool:
        """Whether theta* is another than the latest parameters."""
        return not self.fisher_running

    @property
    def rows_per_batch(self) -> int:
        """Samples of each batch with fisher = "batched"."""
        return self.fisher_batch_size or self.benchmark.batch_size_of(self.task)


@dataclass(kw_only=True, eq=False)
class OnlineEWCOptions(EWCOptions):
    """Keep one anchor, and let the Fisher information of past tasks fade.

    F <- gamma F + F_t; theta* <- theta. Schwarz et al. 2018 (1805.06370), section 4.

    Args:
        gamma: factor of the past importance after each task, in [0, 1]; 0 protects only the
            latest task.
        fisher_running: as in EWC, but it estimates F_t only; gamma applies to past importance.
        fisher_normalize: "none"; or divide F_t by its largest element ("max") or by the "sum" of
            all, over all parameters, so that every task has the same weight.

    All other arguments are those of EWC.

    Raises:
        ConfigError: a value out of range, or options that exclude each other.
    """

    gamma: float = 0.95
    fisher_normalize: str = added("none")

    name: ClassVar[str] = "online_ewc"
    numerics: ClassVar[Numerics] = staticmethod(_online_numerics)
    vectorizable: ClassVar[tuple[str, ...]] = ("ewc_lambda", "penalty_scale", "gamma", "clip")
    has_offset: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        within("gamma", self.gamma, 0.0, 1.0)
        one_of("fisher_normalize", self.fisher_normalize, ("none", "max", "sum"))

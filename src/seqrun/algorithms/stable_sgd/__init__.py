"""Stable SGD: a training regime under which plain SGD forgets less.

Paper: Mirzadeh et al. 2020, "Understanding the role of training regimes in continual learning",
2006.06958, section 4: dropout after every hidden ReLU, a large initial learning rate that falls
from task to task, lr_t = max(lr * gamma^t, 5e-5), small batches, and a momentum of 0.8.

Loss: cross-entropy on the current task's batch; there is no continual-learning term. The state of
the optimizer is reset in every epoch, as in the authors' code. With gamma = 1, lr_min = 0,
dropout = 0 and momentum = null it is naive (with `reinit_optimizer` = "task", or an optimizer
without state).

Differs from the paper: nothing. The defaults are the author's values for Rotated MNIST, but for
the initial learning rate and the batch size, which are still set by optimizer.lr (there 0.1) and
benchmark.batch_size (there 64). Dropout is off at test; in the oldest version of the authors' code
it stayed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.checks import added, at_least, boolean, changed, one_of, within
from seqrun.training.options import TrainingOptions, take_over

SCHEDULE = {
    "lr_decay": "gamma",
    "lr_min": "lr_min",
    "decay_first_task": "decay_first_task",
    "reinit_optimizer": "reinit_optimizer",
}
"""Option of `training` -> the option of the algorithm that replaces it."""


@dataclass(kw_only=True, eq=False)
class StableSGDOptions(BaseAlgorithm):
    """Train each task in turn, with dropout and a learning rate that falls from task to task.

    lr_t = max(lr * gamma^t, lr_min), t from 1. Mirzadeh et al. 2020 (2006.06958), section 4.

    Args:
        gamma: factor of the learning rate per task, in (0, 1].
        lr_min: floor of the learning rate, >= 0.
        decay_first_task: train task 1 at lr * gamma, as the authors do; else at lr.
        reinit_optimizer: when the optimizer's state is reset: every "epoch", as the authors do,
            every "task", or "never".
        dropout: probability of dropping a hidden activation, in [0, 1), which is set in the
            backbone; None = keep the backbone's own.
        momentum: of the optimizer, in [0, 1); None = keep the optimizer's own.

    Raises:
        ConfigError: a value out of range; a schedule that `training` sets too, a dropout that the
            backbone sets too, or a momentum that the optimizer sets too; a backbone without
            dropout or an optimizer without momentum.
    """

    gamma: float = changed(0.55)
    lr_min: float = 5e-5
    decay_first_task: bool = True
    reinit_optimizer: str = "epoch"
    dropout: float | None = changed(0.25)
    momentum: float | None = added(0.8, before=None)

    name: ClassVar[str] = "stable_sgd"
    vectorizable: ClassVar[tuple[str, ...]] = ("gamma", "lr_min")

    def __post_init__(self) -> None:
        within("gamma", self.gamma, 0.0, 1.0, open_low=True)
        at_least("lr_min", self.lr_min, 0.0)
        boolean("decay_first_task", self.decay_first_task)
        one_of("reinit_optimizer", self.reinit_optimizer, ("epoch", "task", "never"))
        for key, own_key in SCHEDULE.items():
            self._take_over("training", key, own_key, getattr(TrainingOptions(), key))
        for group, key in (("backbone", "dropout"), ("optimizer", "momentum")):
            if getattr(self, key) is not None:
                within(key, getattr(self, key), 0.0, 1.0, open_high=True)
                self._take_over(group, key, key, 0.0)
        super().__post_init__()

    def _take_over(self, group: str, key: str, own_key: str, unset: Any) -> None:
        """Set an option of another part to the value of `own_key`."""
        value, told = getattr(self, own_key), {"algo": self.name, "own_key": own_key}
        or_null = group != "training"
        part = take_over(
            getattr(self, group), f"{group}.{key}", value, unset=unset, or_null=or_null, **told
        )
        setattr(self, group, part)

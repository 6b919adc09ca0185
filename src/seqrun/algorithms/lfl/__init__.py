"""LFL: Less-Forgetting Learning.

Paper: Jung et al. 2016, "Less-forgetting learning in deep neural networks", 1607.00122.
Loss (equation 1, from task 2 on): CE + lambda * mean over the batch of
1/2 ||f(x; old) - f(x; new)||_2^2, with f the input of the classifier and `old` a frozen copy of
the network from before the task; the classifier is frozen (section 3.2).

Differs from the paper: if tasks have outputs of their own (scenarios "task" and "class"), only the
outputs of earlier tasks are frozen, and those of the current task are trained. The paper's
learning rate, smaller from task 2 on, is left to training.lr_decay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.checks import at_least, boolean, one_of

CLASSIFIER = "classifier/"
"""Prefix of the names of the last layer's parameters."""


class LFLState(NamedTuple):
    """State of LFL: the network from before the task.

    Attributes:
        params: parameter name -> value.
        stats: BatchNorm statistic name -> value.
        frozen: (C,) bool, the classifier's outputs that do not train; none in the first task.
    """

    params: dict[str, Any]
    stats: dict[str, Any]
    frozen: Any


@dataclass(kw_only=True, eq=False)
class LFLOptions(BaseAlgorithm):
    """Keep the features of the current data near those of the network from before the task.

    CE + lambda * mean over the batch of factor * ||f(x; old) - f(x; new)||_2^2, with the classifier
    frozen. Jung et al. 2016 (1607.00122), equation 1.

    Args:
        lfl_lambda: strength lambda, >= 0; 0 without `freeze_classifier` is naive.
        reduction: "sum" (the paper) or "mean" of the squared differences over features.
        factor: factor of the squared distance: 0.5 (the paper) or 1; with "mean", 1 is the mean
            squared error that Avalanche uses.
        freeze_classifier: from task 2 on, freeze the outputs of the last layer that earlier tasks
            have trained: all outputs if the tasks share them.

    Raises:
        ConfigError: a value out of range.
    """

    lfl_lambda: float = 0.1
    reduction: str = "sum"
    factor: float = 0.5
    freeze_classifier: bool = True

    name: ClassVar[str] = "lfl"
    hparam_names: ClassVar[tuple[str, ...]] = ("lfl_lambda", "factor")
    vectorizable: ClassVar[tuple[str, ...]] = ("lfl_lambda", "factor")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("lfl_lambda", self.lfl_lambda, 0.0)
        one_of("reduction", self.reduction, ("sum", "mean"))
        one_of("factor", self.factor, (0.5, 1.0))
        boolean("freeze_classifier", self.freeze_classifier)

    def hparams(self) -> dict[str, float]:
        """Set lambda to 0 in the first task, when there is nothing to forget."""
        scalars = super().hparams()
        return scalars | {"lfl_lambda": scalars["lfl_lambda"] * (self.task > 1)}

    def initial_state(self) -> LFLState:
        """Return a copy of the current network, and which of its outputs are frozen."""
        params, stats = self.engine.snapshot()
        return LFLState(params, stats, self.engine.to_device(self.frozen_outputs()))

    def on_after_task(self) -> None:
        """Keep a copy of the network for the next task."""
        self.state = self.initial_state()

    def frozen_outputs(self) -> np.ndarray:
        """Return (C,) bool: the outputs of the tasks so far; none without freeze_classifier."""
        classes, class_mask = self.benchmark.num_classes, self.benchmark.class_mask
        if not self.freeze_classifier or self.task == 0:
            return np.zeros(classes, bool)
        if class_mask is None:
            return np.ones(classes, bool)
        return np.logical_or.reduce(class_mask[: self.task])

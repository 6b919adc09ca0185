"""The parity suite detects bugs of published libraries, planted in one twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import assert_same_run
from experiments import algorithm_class, run, shared_run
from parity.cases import TOLERANCE

from seqrun.formulas.torch import cross_entropy, penalty_gradient

EWC = algorithm_class("ewc", "torch")
SPEC: dict[str, Any] = {
    "ewc_lambda": 5.0,
    "backbone": {"batch_norm": True},
    "optimizer_options": {"lr": 0.02, "momentum": 0.5},
    "training": {"epochs_per_task": 1, "grad_clip": 1.0},
}


class NoHalf(EWC):
    """The penalty is lambda F instead of lambda / 2 F."""

    penalty_coefficient = property(lambda self: self.ewc_lambda)


class FrozenAnchor(EWC):
    """The anchor stays where the first task ended."""

    def consolidate(self, importance: Any) -> Any:
        state = super().consolidate(importance)
        return state if self.task == 1 else state._replace(anchor=self.state.anchor)


class LatestImportance(EWC):
    """Each task's importance overwrites the one before."""

    def consolidate(self, importance: Any) -> Any:
        return super().consolidate(importance)._replace(importance=importance)


class BatchSquared(EWC):
    """The Fisher is the squared mean gradient of a batch, not the mean of the samples' squares."""

    def _squared_sample_gradients(self, row: Any, draw: Any) -> Any:
        return {n: g * len(row) for n, g in self._squared_batch_gradient(row, draw).items()}


class NoZeroGrad(EWC):
    """Gradients accumulate from one Fisher batch to the next."""

    def calculate_parameter_importance(self) -> Any:
        self.left: dict[str, Any] = {}
        return super().calculate_parameter_importance()

    def _squared_sample_gradients(self, row: Any, draw: Any) -> Any:
        terms = super()._squared_sample_gradients(row, draw)
        self.left = {n: term + self.left.get(n, 0.0) for n, term in terms.items()}
        return self.left


class LeakingPenalty(EWC):
    """The Fisher is computed from the loss including its penalty."""

    def calculate_parameter_importance(self) -> Any:
        pull = penalty_gradient(
            self.params, self.state.anchor, self.state.importance, self.penalty_coefficient
        )
        data = self.engine.dataset
        loss = cross_entropy(self.module(self.engine.inputs(data.x)), data.y)
        mean = torch.autograd.grad(loss, list(self.params.values()))
        fisher = super().calculate_parameter_importance()
        # mean of (g + pull)^2
        leaks = (p.detach() ** 2 + 2 * p.detach() * g for p, g in zip(pull, mean, strict=True))
        return {n: f + leak for (n, f), leak in zip(fisher.items(), leaks, strict=True)}


class EvalModeForgotten(EWC):
    """The passes of the Fisher run in train mode and update BatchNorm's statistics."""

    def on_after_task(self) -> None:
        super().on_after_task()
        with torch.no_grad():
            self.module(self.engine.inputs(self.engine.dataset.x))


class EvalModeLeftOn(EWC):
    """After the first task the module stays in eval mode."""

    def on_after_task(self) -> None:
        super().on_after_task()
        self.module.eval()


class ClipIgnored(EWC):
    """Gradients are not clipped."""

    def optimizer_step(self, step: Any) -> None:
        step.hparams = {n: v for n, v in step.hparams.items() if n != "grad_clip"}
        super().optimizer_step(step)


class MomentumIgnored(EWC):
    """Momentum is 0."""

    def hparams(self) -> dict[str, float]:
        return super().hparams() | {"momentum": 0.0}


class PenaltyInLoss(EWC):
    """The logged task loss contains the penalty."""

    def backward(self, step: Any) -> None:
        super().backward(step)
        state = step.state
        terms = [
            (state.importance[n] * (p.detach() - state.anchor[n]) ** 2).sum()
            for n, p in step.params.items()
        ]
        step.loss = step.loss + self.penalty_coefficient * sum(terms)


class SeedIgnored(EWC):
    """The order of the data is that of another epoch."""

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> Any:
        return super().plan_epoch(task, epoch + 1, num_samples)


PLANTED = [
    NoHalf,
    FrozenAnchor,
    LatestImportance,
    BatchSquared,
    NoZeroGrad,
    LeakingPenalty,
    EvalModeForgotten,
    EvalModeLeftOn,
    ClipIgnored,
    MomentumIgnored,
    PenaltyInLoss,
    SeedIgnored,
]
STREAM = {"eval_batch_size": 50}  # so that the Fisher has two batches


@pytest.mark.ci
def test_without_a_bug_the_twins_agree():
    """Up to 2e-4, since BatchNorm multiplies rounding errors; see parity/cases.py."""
    ours, other = (shared_run("ewc", b, stream=STREAM, **SPEC) for b in ("torch", "jax"))
    assert_same_run(ours, other, 20 * TOLERANCE)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda kind: kind.__name__)
def test_a_planted_bug_breaks_parity(planted: type):
    """With the same comparison and tolerance."""
    broken = run("ewc", "torch", kind=planted, stream=STREAM, **SPEC)
    with pytest.raises(AssertionError):
        assert_same_run(broken, shared_run("ewc", "jax", stream=STREAM, **SPEC), 20 * TOLERANCE)

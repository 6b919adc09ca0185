"""Step, Batch, Losses: the data of one training step; `Events.run_step` is what runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Samples as the network sees them.

    Attributes:
        x: (B, H, W, C) float32, transformed.
        y: (B,) integer labels.
        t: (B,) integer tasks, 0-based.
    """

    x: Any
    y: Any
    t: Any


class Losses(NamedTuple):
    """What an algorithm's `losses` returns.

    Attributes:
        task: scalar, the task loss, which is logged and must be finite: the cross-entropy of the
            batch, or of batch and memory where they are one mean (ER); never a penalty.
        total: scalar, what the gradient is taken of.
        logits: (B, C) of the current task's batch, with the classes left out that `step.mask`
            does not allow; the training accuracy is counted from them.
    """

    task: Any
    total: Any
    logits: Any


def checked_losses(losses: Losses, algorithm: object) -> Losses:
    """Return what a method's `losses` returned; raise TypeError unless it is a Losses."""
    if not isinstance(losses, Losses):
        kind = type(algorithm).__name__
        raise TypeError(f"{kind}.losses: must return Losses(task, total, logits)")
    return losses


@dataclass
class Step:
    """The fields of one step: arrays of the engine's own framework.

    On JAX a step is created inside the traced program, so that hooks which replace its fields
    stay pure; on PyTorch `params` are the live parameters, changed in place by the optimizer.

    Attributes:
        batches: plan array -> samples of the replay dataset that this step reads; those of
            "index" are the current task's and what is shuffled into them.
        params: parameter name -> value.
        stats: BatchNorm statistic name -> value.
        opt_state: the optimizer's NamedTuple.
        state: the algorithm's NamedTuple.
        hparams: name -> scalar that enters arithmetic (lr, ewc_lambda, ...). On JAX every one is
            an array, and in compiled steps on PyTorch too, except the optimizer's own scalars
            other than lr: no `if`, `float()` or `math` on it.
        mask: (T, C) bool, the classes that a sample of each task may be given; None = all.
        arrays: this step's row of every plan array.
        dataset: the replay dataset on the device, which plan indices point into.
        key: of this step's noise (JAX only).
        loss: the task loss, which never contains a penalty.
        logits: (B, C) of `batch` in the training forward.
        gradients: parameter name -> gradient.
        cache: what an algorithm saves from one of its hooks for the next.
    """

    batches: dict[str, Batch]
    params: dict[str, Any]
    stats: dict[str, Any]
    opt_state: Any
    state: Any
    hparams: dict[str, Any]
    mask: Any = None
    arrays: dict[str, Any] = field(default_factory=dict)
    dataset: Any = None
    key: Any = None
    loss: Any = None
    logits: Any = None
    gradients: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> Batch:
        """The batch of the plan array "index"."""
        return self.batches["index"]

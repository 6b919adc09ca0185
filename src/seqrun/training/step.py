"""Step, Batch, Losses: the data of one training step, which `Events.run_step` runs."""

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
        task: scalar, the task loss, which is logged and must be finite. It is the cross-entropy of
            the batch, or of batch and memory together if the method averages over both (ER); it
            never contains a penalty.
        total: scalar, the loss to differentiate.
        logits: (B, C) of the current task's batch, with classes masked by `step.mask`; they give
            the training accuracy.
    """

    task: Any
    total: Any
    logits: Any


def checked_losses(losses: Losses, algorithm: object) -> Losses:
    """Return `losses`, the result of an algorithm's `losses`; raise TypeError unless a Losses."""
    if not isinstance(losses, Losses):
        kind = type(algorithm).__name__
        raise TypeError(f"{kind}.losses: must return Losses(task, total, logits)")
    return losses


@dataclass
class Step:
    """The data of one training step, in arrays of the framework.

    On JAX a step is created inside the traced program, so a hook that replaces its fields stays
    pure. On PyTorch `params` are the module's parameters, which the optimizer changes in place.

    Attributes:
        batches: name of a plan array -> the samples of the replay dataset that it selects for this
            step; "index" is the batch of the current task, with samples shuffled into it if any.
        params: parameter name -> value.
        stats: BatchNorm statistic name -> value.
        opt_state: the optimizer's NamedTuple.
        state: the algorithm's NamedTuple.
        hparams: name -> scalar that enters arithmetic (lr, ewc_lambda, ...). Do not use `if`,
            `float()` or `math` on them: on JAX, and in compiled steps on PyTorch, they are arrays
            (on PyTorch except the optimizer's scalars other than lr).
        mask: (T, C) bool, the classes in the softmax of each task; None = all.
        arrays: this step's row of every plan array.
        dataset: the replay dataset on the device, which plan indices point into.
        key: random key of this step's noise (JAX only).
        loss: the task loss, which never contains a penalty.
        logits: (B, C) of `batch` in the forward pass of training.
        gradients: parameter name -> gradient.
        cache: values that an algorithm passes from one of its hooks to the next.
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

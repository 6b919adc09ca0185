"""La-MAML: Look-ahead meta-learning, with a learned rate for every parameter; and C-MAML.

Paper: Gupta et al. 2020, "La-MAML: look-ahead meta learning for continual learning", 2007.13904,
algorithm 1. Inner steps take a batch chunk by chunk: theta_{j+1} = theta_j - alpha g_j, from
theta_0 = theta. The gradient of the meta-loss, mean_j CE(theta_{j+1}; batch and memory), then
updates theta and alpha:

    grad_theta = mean_j grad L(theta_{j+1})                               (first order)
    grad_alpha = mean_j [- grad L(theta_{j+1}) * sum_{k<=j} g_k]          (first order)
    alpha <- alpha - lr_alpha grad_alpha, then theta <- theta - relu(alpha) grad_theta

C-MAML is `learn_lr: false` with `sync_update: true`. Without `sync_update` this update replaces the
optimizer's step.

Differs from the paper: nothing in the update. The authors' code for MNIST, and it alone, has
relu(alpha) in the inner step too (`inner_relu`): an alpha at or below 0 then has no gradient and
stays there. As in the authors' code, first order is the default, the two gradients are clipped
separately, each to a norm of 2 (`clip`), lr_alpha is 0.3 (with `sync_update` theirs is 0.1), and a
batch is offered to the reservoir once. Unlike it, replayed samples are drawn without replacement,
and a batch is offered after its first glance, not during the inner steps.
The first glance takes the batch in the order in which it arrives, which is random already. With
BatchNorm, which the paper does not use, an inner step normalises by the statistics of its whole
batch (a chunk may be one sample), and the meta-batches update the running statistics.

Reduces to naive: with alpha_init = 0, learn_lr = false, sync_update = true and glances = 1, as long
as the memory is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.algorithms.replay import ReplayOptions
from seqrun.checks import Numerics, added, at_least, boolean, whole
from seqrun.memory import MemoryMechanism
from seqrun.training.options import take_over


class LaMAMLState(NamedTuple):
    """State of La-MAML.

    Attributes:
        alpha: parameter name -> learning rate of every element; theta's own step uses relu(alpha).
    """

    alpha: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class Glances(BaseAlgorithm):
    """Train several consecutive steps on every batch, each with the batch in a new order.

    Args:
        glances: steps on a batch, >= 1.
    """

    glances: int = 5

    def __post_init__(self) -> None:
        whole("glances", self.glances, 1)
        self.steps_per_batch = self.glances
        super().__post_init__()

    def plan_epoch(self, task: int, epoch: int, num_samples: int) -> list[dict[str, np.ndarray]]:
        """Repeat each planned batch; all glances but the first are in a new order."""
        parts = super().plan_epoch(task, epoch, num_samples)
        rng = self.random.generator("data", task, epoch, 1)
        return [_repeated(part, self.glances, rng) for part in parts]


def _repeated(
    part: dict[str, np.ndarray], glances: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    order = np.tile(np.arange(part["index"].shape[1]), (len(part["index"]), glances, 1))
    order[:, 1:] = rng.permuted(order[:, 1:], axis=2)
    order = order.reshape(-1, order.shape[2])
    rows = np.repeat(np.arange(len(part["index"])), glances)[:, None]
    return {name: array[rows, order] for name, array in part.items()}


def _numerics(options: Mapping[str, Any]) -> int:
    """Return 2 but for the values that an experiment had before it could choose."""
    return 1 if options["inner_relu"] and options["clip"] is None else 2


@dataclass(kw_only=True, eq=False)
class LaMAMLOptions(ReplayOptions, Glances):
    """Meta-learn a look-ahead on each batch and memory: La-MAML. Gupta et al. 2020 (2007.13904).

    Without `sync_update`, relu(alpha) is the step size: the optimizer, `training.lr_decay` and
    `training.lr_min` have no effect.

    Args:
        memory_size: samples in the reservoir, from all tasks together, >= 1.
        replay_batch_size: memory samples in each meta-batch, >= 1; if fewer are stored, all of
            them.
        glances: steps on each batch, >= 1; each has the batch in a new order and its own memory
            batch.
        inner_chunk_size: samples per inner step, >= 1; the last may have fewer.
        second_order: differentiate through the inner gradients g_j.
        alpha_init: initial alpha of every parameter element, >= 0.
        learn_lr: learn alpha; false keeps it at alpha_init.
        lr_alpha: learning rate of alpha, >= 0; the authors' is 0.3, with `sync_update` 0.1.
        sync_update: update theta with the run's optimizer (plain SGD in the paper) and learning
            rate, instead of with relu(alpha).
        inner_relu: take relu(alpha) instead of alpha in the inner steps too, as the authors' code
            for MNIST does.
        clip: largest global norm of the gradient of theta, and of that of alpha, > 0, which is set
            in `training.grad_clip`; None = keep that key's own.

    Raises:
        ConfigError: a value out of range, or a clipping that `training` sets too.
    """

    memory_size: int = 200
    replay_batch_size: int = 10
    memory_batch_size: int = field(init=False)  # the base class's name for it
    inner_chunk_size: int = 1
    second_order: bool = False
    alpha_init: float = 0.15
    learn_lr: bool = True
    lr_alpha: float = 0.3
    sync_update: bool = False
    inner_relu: bool = added(False, before=True)
    clip: float | None = added(2.0, before=None)

    name: ClassVar[str] = "lamaml"
    numerics: ClassVar[Numerics] = staticmethod(_numerics)
    hparam_names: ClassVar[tuple[str, ...]] = ("lr_alpha",)
    vectorizable: ClassVar[tuple[str, ...]] = ("lr_alpha", "alpha_init", "clip")

    def __post_init__(self) -> None:
        if self.clip is not None:
            at_least("clip", self.clip, 0.0, strictly=True)
            self.training = take_over(
                self.training,
                "training.grad_clip",
                self.clip,
                unset=None,
                algo=self.name,
                own_key="clip",
            )
        whole("replay_batch_size", self.replay_batch_size, 1)
        self.memory_batch_size = self.replay_batch_size
        super().__post_init__()
        whole("inner_chunk_size", self.inner_chunk_size, 1)
        boolean("second_order", self.second_order)
        at_least("alpha_init", self.alpha_init, 0.0)
        boolean("learn_lr", self.learn_lr)
        at_least("lr_alpha", self.lr_alpha, 0.0)
        boolean("sync_update", self.sync_update)
        boolean("inner_relu", self.inner_relu)

    def make_memory(self) -> MemoryMechanism:
        """Return a reservoir to which only the first glance offers a batch."""
        return MemoryMechanism(
            policy="reservoir", memory_size=self.memory_size, glances=self.glances
        )

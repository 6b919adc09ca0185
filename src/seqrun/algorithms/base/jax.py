"""JaxBaseAlgorithm: the base class of methods on JAX; by itself it is plain training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn
from jax import Array

from seqrun.formulas.jax import allow_classes, clip_by_global_norm, cross_entropy
from seqrun.formulas.parameters.jax import as_tree, canonical
from seqrun.records.checkpoint import Checkpoint
from seqrun.records.results import RunRecord
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.engine.jax import JaxEngine
from seqrun.training.step import Losses, Step, checked_losses
from seqrun.training.trainer import Trainer

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class JaxBaseAlgorithm(BaseAlgorithm):
    """A method on JAX: it overrides `losses`, and hooks for what is not a loss.

    A traced method must read everything that changes from the step: an attribute of `self` becomes
    a constant of the compiled program.
    """

    backend: ClassVar[str] = "jax"
    engine_type: ClassVar[type[JaxEngine]] = JaxEngine

    engine: JaxEngine = field(init=False, repr=False)

    def fit(self, resume_from: Checkpoint | None = None) -> RunRecord:
        return Trainer(self).fit(resume_from)

    @property
    def module(self) -> nn.Module:
        """The flax module."""
        return self.engine.module

    # ---- what a method overrides, besides the hooks

    def losses(self, step: Step) -> Losses:
        """Return the mean cross-entropy on the current task's batch."""
        logits = allow_classes(self.forward(step, step.batch.x), step.mask, step.batch.t)
        loss = cross_entropy(logits, step.batch.y)
        return Losses(task=loss, total=loss, logits=logits)

    def backward(self, step: Step) -> None:
        def total(params: Arrays) -> tuple[Array, tuple[Array, Array, Arrays, dict[str, Any]]]:
            traced = replace(step, params=params, cache=dict(step.cache))
            losses = checked_losses(self.losses(traced), self)
            return losses.total, (losses.task, losses.logits, traced.stats, traced.cache)

        step.gradients, (step.loss, step.logits, step.stats, step.cache) = jax.grad(
            total, has_aux=True
        )(step.params)

    def total_loss(self, step: Step) -> Callable[[Arrays], Array] | None:
        """Return the loss whose gradient is `step.gradients`, as a function of the parameters.

        It is for shortcuts that avoid computing the gradient on a CPU; on a GPU they are slower,
        and the result is None. So it is with BatchNorm, whose statistics the step has already
        updated, and in classes from outside seqrun, which may have changed the gradient.
        """
        is_ours = type(self).__module__.startswith("seqrun.")
        if self.engine.device_kind != "cpu" or step.stats or not is_ours:
            return None
        return lambda params: self.losses(replace(step, params=params)).total

    def optimizer_step(self, step: Step) -> None:
        step.gradients = self.clipped(step, step.gradients)
        step.params, step.opt_state = self.optimizer.update(
            step.gradients, step.opt_state, step.params, step.hparams
        )

    def clipped(self, step: Step, gradients: Arrays) -> Arrays:
        """Return the gradients, clipped if `training.grad_clip` is set."""
        if "grad_clip" not in step.hparams:
            return gradients
        return clip_by_global_norm(gradients, step.hparams["grad_clip"])

    # ---- training passes update the step's BatchNorm statistics; `key` None = the step's

    def forward(self, step: Step, x: Array, key: Array | None = None) -> Array:
        """Return the (B, C) logits of all classes."""
        key = step.key if key is None else key
        logits, step.stats = self.forward_with(step.params, step.stats, x, key)
        return logits

    def training_features(self, step: Step, x: Array, key: Array | None = None) -> Array:
        """Return the (B, D) inputs of the classifier."""
        variables = {"params": as_tree(step.params), "batch_stats": as_tree(step.stats)}
        features, updated = self.module.apply(
            variables,
            x,
            train=True,
            rngs={"dropout": step.key if key is None else key},
            mutable=["batch_stats"],
            method="encode",
        )
        step.stats = canonical(updated.get("batch_stats", {}))
        return features

    def classify(self, step: Step, features: Array) -> Array:
        """Return the (B, C) logits of (B, D) features."""
        logits: Any = self.module.apply(
            {"params": as_tree(step.params)}, features, method="classify"
        )
        return logits

    def forward_with(
        self, params: Arrays, stats: Arrays, x: Array, key: Array
    ) -> tuple[Array, Arrays]:
        """Return the logits of a training pass and the updated BatchNorm statistics."""
        variables = {"params": as_tree(params), "batch_stats": as_tree(stats)}
        logits, updated = self.module.apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return logits, canonical(updated.get("batch_stats", {}))

    # ---- evaluation

    def inputs(self, x: Array) -> Array:
        """Return the network inputs of stored uint8 images."""
        return self.engine.inputs(x)

    def predict(self, params: Arrays, stats: Arrays, x: Array) -> Array:
        """Return the logits of an evaluation pass with these parameters and statistics."""
        variables = {"params": as_tree(params), "batch_stats": as_tree(stats)}
        logits: Any = self.module.apply(variables, x)
        return logits

    def encode(self, params: Arrays, stats: Arrays, x: Array) -> Array:
        """Return the classifier's inputs in an evaluation pass; arguments as for `predict`."""
        variables = {"params": as_tree(params), "batch_stats": as_tree(stats)}
        features: Any = self.module.apply(variables, x, method="encode")
        return features

    def features(self, x: np.ndarray) -> np.ndarray:
        size, engine = self.benchmark.eval_batch_size, self.engine
        padding = -len(x) % size  # batches of one shape need one program
        padded = np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
        parts = []
        for part in np.split(padded, len(padded) // size):
            args = (self.params, self.stats, engine.to_device(part))
            parts.append(np.asarray(engine.compiled("features", self._encode_images, args)(*args)))
        return np.concatenate(parts)[: len(x)]

    def _encode_images(self, params: Arrays, stats: Arrays, x: Array) -> Array:
        return self.encode(params, stats, self.inputs(x))

    def evaluation_logits(self, params: Arrays, stats: Arrays, arrays: Any, x: Array) -> Array:
        return self.predict(params, stats, x)

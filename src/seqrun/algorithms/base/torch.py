"""PyTorchBaseAlgorithm: the base class of methods on PyTorch; by itself it is plain training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from seqrun.backbones.torch import Encoder
from seqrun.formulas.torch import allow_classes, clip_by_global_norm, cross_entropy
from seqrun.records.checkpoint import Checkpoint
from seqrun.records.results import RunRecord
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.engine.torch import TorchEngine
from seqrun.training.step import Losses, Step, checked_losses
from seqrun.training.trainer import Trainer

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class PyTorchBaseAlgorithm(BaseAlgorithm):
    """A method on PyTorch: it overrides `losses`, and hooks for what is not a loss."""

    backend: ClassVar[str] = "torch"
    engine_type: ClassVar[type[TorchEngine]] = TorchEngine

    engine: TorchEngine = field(init=False, repr=False)

    def fit(self, resume_from: Checkpoint | None = None) -> RunRecord:
        return Trainer(self).fit(resume_from)

    @property
    def module(self) -> nn.Module:
        """The network, in train mode except while it is evaluated."""
        return self.engine.module

    # ---- what a method overrides, besides the hooks

    def losses(self, step: Step) -> Losses:
        """Return the mean cross-entropy on the current task's batch."""
        logits = allow_classes(self.forward(step, step.batch.x), step.mask, step.batch.t)
        loss = cross_entropy(logits, step.batch.y)
        return Losses(task=loss, total=loss, logits=logits)

    def backward(self, step: Step) -> None:
        losses = checked_losses(self.losses(step), self)
        values = torch.autograd.grad(losses.total, list(step.params.values()))
        step.loss, step.logits = losses.task.detach(), losses.logits.detach()
        step.gradients = dict(zip(step.params, values, strict=True))

    def optimizer_step(self, step: Step) -> None:
        step.gradients = self.clipped(step, step.gradients)
        step.params, step.opt_state = self.optimizer.update(
            step.gradients, step.opt_state, step.params, step.hparams
        )

    def clipped(self, step: Step, gradients: Tensors) -> Tensors:
        """Return the gradients, clipped if `training.grad_clip` is set."""
        if "grad_clip" not in step.hparams:
            return gradients
        return clip_by_global_norm(gradients, step.hparams["grad_clip"])

    # ---- training passes update the step's BatchNorm statistics

    def forward(self, step: Step, x: Tensor) -> Tensor:
        """Return the (B, C) logits of all classes."""
        return self.engine.network(x)

    def training_features(self, step: Step, x: Tensor) -> Tensor:
        """Return the (B, D) inputs of the classifier."""
        network: Any = self.module
        return network.encode(x)

    def classify(self, step: Step, features: Tensor) -> Tensor:
        """Return the (B, C) logits of (B, D) features."""
        network: Any = self.module
        return network.classify(features)

    def forward_with(self, params: Tensors, stats: Tensors, x: Tensor) -> Tensor:
        """Return the logits of a training pass with these parameters; update `stats` in place."""
        return torch.func.functional_call(self.module, self.engine.module_values(params, stats), x)

    # ---- evaluation

    def inputs(self, x: Tensor) -> Tensor:
        """Return the network inputs of stored uint8 images."""
        return self.engine.inputs(x)

    def predict(self, params: Tensors, stats: Tensors, x: Tensor) -> Tensor:
        """Return the logits of an evaluation pass with these parameters and statistics."""
        values = self.engine.module_values(params, stats)
        with self.engine.evaluating():
            return torch.func.functional_call(self.module, values, x)

    def encode(self, params: Tensors, stats: Tensors, x: Tensor) -> Tensor:
        """Return the classifier's inputs in an evaluation pass; arguments as for `predict`."""
        values = self.engine.module_values(params, stats, prefix="module.")
        with self.engine.evaluating():
            return torch.func.functional_call(Encoder(self.module), values, x)

    @torch.no_grad()
    def features(self, x: np.ndarray) -> np.ndarray:
        parts = self.engine.to_device(x).split(self.benchmark.eval_batch_size)
        inputs = map(self.inputs, parts)
        features = [self.encode(self.params, self.stats, part) for part in inputs]
        return torch.cat(features).cpu().numpy()

    def evaluation_logits(self, params: Tensors, stats: Tensors, arrays: Any, x: Tensor) -> Tensor:
        return self.predict(params, stats, x)

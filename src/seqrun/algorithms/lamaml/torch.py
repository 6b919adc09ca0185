"""La-MAML on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seqrun.algorithms.base import Batch, Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.lamaml import LaMAMLOptions, LaMAMLState
from seqrun.formulas.torch import allow_classes, cross_entropy

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class LaMAML(LaMAMLOptions, PyTorchBaseAlgorithm):
    """Look-ahead meta-learning with a learned rate for every parameter (Gupta et al. 2020)."""

    is_compilable: ClassVar[bool] = False  # compiling its unrolled inner steps takes minutes

    def initial_state(self) -> LaMAMLState:
        return LaMAMLState(
            {n: torch.full_like(p, self.alpha_init).detach() for n, p in self.params.items()}
        )

    def backward(self, step: Step) -> None:
        """Compute the meta-loss and its gradients with respect to theta and alpha."""
        alpha = {n: a.detach().requires_grad_(self.learn_lr) for n, a in step.state.alpha.items()}
        loss, logits = self.meta_loss(alpha, step)
        wanted = [*self.params.values(), *(alpha.values() if self.learn_lr else ())]
        values = torch.autograd.grad(loss, wanted)
        step.loss, step.logits = loss.detach(), logits.detach()
        step.gradients = dict(zip(self.params, values, strict=False))
        step.cache["alpha_gradients"] = dict(zip(alpha, values[len(alpha) :], strict=False))

    def meta_loss(self, alpha: Tensors, step: Step) -> tuple[Tensor, Tensor]:
        """Return the mean of the losses after the inner steps, and the batch's final logits."""
        rates = {n: a.relu() for n, a in alpha.items()} if self.inner_relu else alpha
        pairs = zip(step.batch, step.batches["replay"], strict=True)
        meta = Batch(*(torch.cat(pair) for pair in pairs))
        fast: Tensors = step.params
        losses = []
        current = len(step.batch.y)
        for start in range(0, current, self.inner_chunk_size):
            rows = slice(start, start + self.inner_chunk_size)
            gradients = self.inner_gradients(fast, rows, step)
            fast = {n: p - rates[n] * g for (n, p), g in zip(fast.items(), gradients, strict=True)}
            logits = allow_classes(self.forward_with(fast, step.stats, meta.x), step.mask, meta.t)
            losses.append(cross_entropy(logits, meta.y))
        return torch.stack(losses).mean(), logits[:current]

    def inner_gradients(self, fast: Tensors, rows: slice, step: Step) -> tuple[Tensor, ...]:
        """Return the gradient of a chunk's loss, a constant unless `second_order`."""
        x, y, t = step.batch
        if self.backbone.has_batch_statistics:  # run the whole batch: a chunk may be one sample
            running = {n: s.clone() for n, s in step.stats.items()}
            logits = self.forward_with(fast, running, x)[rows]
        else:
            logits = self.forward_with(fast, {}, x[rows])
        loss = cross_entropy(allow_classes(logits, step.mask, t[rows]), y[rows])
        return torch.autograd.grad(loss, list(fast.values()), create_graph=self.second_order)

    def optimizer_step(self, step: Step) -> None:
        """Update alpha first, then theta with the new alpha or the optimizer."""
        if self.learn_lr:
            gradients = self.clipped(step, step.cache["alpha_gradients"])
            rate = step.hparams["lr_alpha"]
            alpha = {n: a - rate * gradients[n] for n, a in step.state.alpha.items()}
            step.state = LaMAMLState(alpha)
        if self.sync_update:
            super().optimizer_step(step)
            return
        step.gradients = self.clipped(step, step.gradients)
        with torch.no_grad():
            for name, parameter in step.params.items():
                parameter -= step.state.alpha[name].relu() * step.gradients[name]

"""iCaRL on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from seqrun.training.step import Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.icarl import ICaRLKept, ICaRLOptions, ICaRLState
from seqrun.formulas.torch import allow_classes, one_hot

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class ICaRL(ICaRLOptions, PyTorchBaseAlgorithm):
    """Incremental Classifier and Representation Learning (Rebuffi et al. 2017)."""

    def initial_state(self) -> ICaRLState:
        """Return a copy of the network, and the classes that it has learned."""
        past = torch.from_numpy(self.past_classes()).to(self._device)
        return ICaRLState(*self.snapshot(), past)

    def training_loss(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the binary cross-entropy of labels and old outputs, and the logits."""
        logits, old = self.network(step.batch.x), step.state
        with torch.no_grad():
            given = self.predict(old.params, old.stats, step.batch.x).sigmoid()
        labels = one_hot(step.batch.y, logits.shape[1]).to(logits.dtype)
        targets = torch.where(old.classes, given, labels)
        terms = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        counted = torch.ones_like(terms) if step.mask is None else step.mask[step.batch.t]
        losses = (terms * counted).sum(1)
        if self.reduction == "mean":
            losses = losses / counted.sum(1)
        return losses.mean(), allow_classes(logits, step.mask, step.batch.t)

    def as_kept(self, means: np.ndarray, known: np.ndarray) -> ICaRLKept:
        """Return the means of classes on the device."""
        return ICaRLKept(*(torch.from_numpy(a).to(self._device) for a in (means, known)))

    def evaluation_logits(
        self, params: Tensors, stats: Tensors, reads: ICaRLKept | None, x: Tensor
    ) -> Tensor:
        """Return the cosines to the means: with rows of length 1, the nearest is the largest."""
        if reads is None:
            return self.predict(params, stats, x)
        cosines = normalize(self.encode(params, stats, x)) @ reads.means.T
        return torch.where(reads.known, cosines, torch.finfo(cosines.dtype).min)

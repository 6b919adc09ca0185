"""iCaRL on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from seqrun.algorithms.base import Losses, Step
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.icarl import ICaRLMeans, ICaRLOptions
from seqrun.formulas.torch import allow_classes, one_hot

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class ICaRL(ICaRLOptions, PyTorchBaseAlgorithm):
    """Incremental Classifier and Representation Learning (Rebuffi et al. 2017)."""

    def losses(self, step: Step) -> Losses:
        """L = sum over classes of BCE(g_y(x), old output of an earlier class, else the label)."""
        x, y, t = step.batch
        logits, old = self.forward(step, x), step.state
        with torch.no_grad():
            old_outputs = self.predict(old.params, old.stats, x).sigmoid()
        labels = one_hot(y, logits.shape[1]).to(logits.dtype)
        targets = torch.where(old.classes, old_outputs, labels)
        terms = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        included = torch.ones_like(terms) if step.mask is None else step.mask[t]
        losses = (terms * included).sum(1)
        if self.reduction == "mean":
            losses = losses / included.sum(1)
        loss = losses.mean()
        return Losses(task=loss, total=loss, logits=allow_classes(logits, step.mask, t))

    def evaluation_logits(
        self, params: Tensors, stats: Tensors, arrays: ICaRLMeans | None, x: Tensor
    ) -> Tensor:
        """Return the cosine similarities to the class means; the nearest mean has the largest."""
        if arrays is None:
            return self.predict(params, stats, x)
        cosines = normalize(self.encode(params, stats, x)) @ arrays.means.T
        return torch.where(arrays.known, cosines, torch.finfo(cosines.dtype).min)

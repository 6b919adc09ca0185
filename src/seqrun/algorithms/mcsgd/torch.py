"""MC-SGD on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqrun.algorithms.base import Batch
from seqrun.algorithms.base.torch import PyTorchBaseAlgorithm
from seqrun.algorithms.mcsgd import Line, MCSGDOptions, Side
from seqrun.formulas.torch import allow_classes

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, eq=False)
class MCSGD(MCSGDOptions, PyTorchBaseAlgorithm):
    """Mode Connectivity SGD (Mirzadeh et al. 2021)."""

    def minimise(self, memory: Side, current: Side, line: Line) -> Tensors:
        """Return w_bar_t from `self.persistent` (w_bar_{t-1}) and `self.params` (w_hat_t)."""
        w_bar = self.persistent.w_bar
        w_hat = {n: p.detach() for n, p in self.params.items()}
        w = between(w_bar, w_hat, self.lmc_init_position)
        velocity = {n: torch.zeros_like(value) for n, value in w.items()}
        points = list(zip(line.positions.tolist(), line.coefficients.tolist(), strict=True))
        for s in range(len(memory.rows)):
            gradient = {n: torch.zeros_like(value) for n, value in w.items()}
            for origin, side in ((w_bar, memory), (w_hat, current)):
                for batch, weights in self._segments(side, s):
                    for a, c in points:
                        point = between(origin, w, a)
                        for name, g in self._gradient(point, batch, weights).items():
                            gradient[name] += c * g
            for name, g in gradient.items():
                velocity[name] = self.lmc_momentum * velocity[name] + g
                w[name] = w[name] - self.lmc_lr * velocity[name]
        return w

    def _segments(self, side: Side, s: int) -> list[tuple[Batch, Tensor]]:
        """Return the samples of step `s`, and the weights of their cross-entropies."""
        segments = []
        for m in range(int(side.segments)):
            x, y, t = (self._put(a[side.rows[s, m]]) for a in side[:3])
            batch = Batch(self.inputs(x), y.long(), t.long())
            segments.append((batch, self._put(side.weights[s, m])))
        return segments

    def _gradient(self, point: Tensors, batch: Batch, weights: Tensor) -> Tensors:
        """Return the gradient at `point` of the weighted sum of cross-entropies, in eval mode."""
        params = {n: value.requires_grad_() for n, value in point.items()}
        logits = self.predict(params, self.stats, batch.x)
        logits = allow_classes(logits, self.engine.mask, batch.t)
        losses = torch.nn.functional.cross_entropy(logits, batch.y, reduction="none")
        values = torch.autograd.grad((weights * losses).sum(), list(params.values()))
        return dict(zip(params, values, strict=True))

    def _put(self, array: np.ndarray) -> Tensor:
        return self.engine.to_device(array)


def between(origin: Tensors, end: Tensors, a: float) -> Tensors:
    """Return origin + a (end - origin)."""
    return {n: value + a * (end[n] - value) for n, value in origin.items()}

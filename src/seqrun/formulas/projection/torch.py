"""Projection of a gradient on PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def projected_by_loss(gradients: Tensors, params: Tensors, loss: Tensor) -> Tensors:
    """Return g, projected if it would increase `loss`.

    Args:
        gradients: g, by canonical name.
        params: the parameters that both gradients are taken with respect to.
        loss: scalar; r is its gradient.
    """
    values = torch.autograd.grad(loss, list(params.values()))
    return projected(gradients, dict(zip(params, values, strict=True)))


def projected(gradients: Tensors, reference: Tensors) -> Tensors:
    """Return g - (g.r / r.r) r if g.r < 0; if g.r >= 0 or r = 0, return g to the bit.

    Args:
        gradients, reference: g and r, by canonical name.
    """
    pairs = [(g, reference[name]) for name, g in gradients.items()]
    product = torch.stack([(g * r).sum() for g, r in pairs]).sum()
    square = torch.stack([r.square().sum() for _, r in pairs]).sum()
    excess = product.clamp(max=0) / square.clamp(min=torch.finfo(square.dtype).tiny)
    return {name: g - excess * reference[name] for name, g in gradients.items()}

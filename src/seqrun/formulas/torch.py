"""Pure functions for PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, C) logits and (B,) labels."""
    return torch.nn.functional.cross_entropy(logits, y)


def one_hot(y: Tensor, num_classes: int) -> Tensor:
    """Return labels (B,) as (B, C) bool, without the synchronisation of torch's own one_hot."""
    return y.unsqueeze(1) == torch.arange(num_classes, device=y.device)


def allow_classes(logits: Tensor, mask: Tensor | None, t: Tensor) -> Tensor:
    """Set the logits of classes that `mask` (T, C) denies a sample's task to the lowest number."""
    if mask is None:
        return logits
    return torch.where(mask[t], logits, torch.finfo(logits.dtype).min)


def set_rows(place: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write (B, C) values to (B,) rows of (M, C) `place`; skip rows >= M.

    Rows below M must be distinct. Unlike with a mask, no shape depends on the rows: a skipped row
    repeats the first one that is written, or rewrites an old value if none is.
    """
    kept = rows < len(place)
    first = kept.int().argmax().unsqueeze(0)
    row = rows[first].clamp(max=len(place) - 1)
    filler = torch.where(kept.any(), values[first], place[row])
    place[torch.where(kept, rows, row)] = torch.where(kept.unsqueeze(1), values, filler)


def clip_by_global_norm(gradients: Tensors, max_norm: float) -> Tensors:
    """Scale all gradients by min(1, max_norm / (global norm + 1e-6))."""
    values = list(gradients.values())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values)))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return dict(zip(gradients, torch._foreach_mul(values, scale), strict=True))


def penalty_gradient(
    params: Tensors, anchor: Tensors, importance: Tensors, coefficient: float
) -> list[Tensor]:
    """Return d/d theta of coefficient * sum_i Omega_i (theta_i - theta*_i)^2, as a list."""
    difference = list(torch._foreach_sub(list(params.values()), list(anchor.values())))
    torch._foreach_mul_(difference, list(importance.values()))
    torch._foreach_mul_(difference, 2.0 * coefficient)
    return difference


def penalty(params: Tensors, anchor: Tensors, importance: Tensors, coefficient: float) -> Tensor:
    """Return coefficient * sum_i Omega_i (theta_i - theta*_i)^2."""
    terms = [(importance[n] * (params[n] - anchor[n]) ** 2).sum() for n in params]
    return coefficient * torch.stack(terms).sum()


def completed_square(
    anchor: Tensors, importance: Tensors, params: Tensors, added: Tensors
) -> tuple[Tensors, Tensors]:
    """Merge Omega (theta - a)^2 and Omega' (theta - theta')^2 into one square, up to a constant.

    Returns:
        The anchor (Omega a + Omega' theta') / (Omega + Omega'), or theta' where both are 0, and
        the importance Omega + Omega'.
    """
    total = {n: importance[n] + added[n] for n in params}
    merged = {
        n: torch.where(
            total[n] > 0,
            (importance[n] * anchor[n] + added[n] * p) / torch.where(total[n] > 0, total[n], 1.0),
            p,
        )
        for n, p in params.items()
    }
    return merged, total

"""Pure functions for PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, C) logits and (B,) labels."""
    return torch.nn.functional.cross_entropy(logits, y)


def one_hot(y: Tensor, num_classes: int) -> Tensor:
    """Return (B, C) bool of (B,) labels; unlike torch's own one_hot it never synchronises."""
    return y.unsqueeze(1) == torch.arange(num_classes, device=y.device)


def allow_classes(logits: Tensor, mask: Tensor | None, t: Tensor) -> Tensor:
    """Set logits to the lowest number where `mask` (T, C) excludes the class from the task `t`."""
    if mask is None:
        return logits
    return torch.where(mask[t], logits, torch.finfo(logits.dtype).min)


def set_rows(target: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write (B, C) values to (B,) rows of the (M, C) array `target`; skip rows >= M.

    Rows below M must be distinct. Indexing with a mask would make a shape depend on the rows, so a
    skipped row repeats the first write instead, or rewrites an old value if there is none.
    """
    kept = rows < len(target)
    first = kept.int().argmax().unsqueeze(0)
    row = rows[first].clamp(max=len(target) - 1)
    filler = torch.where(kept.any(), values[first], target[row])
    target[torch.where(kept, rows, row)] = torch.where(kept.unsqueeze(1), values, filler)


def clip_by_global_norm(gradients: Tensors, max_norm: float) -> Tensors:
    """Scale all gradients by min(1, max_norm / (global norm + 1e-6))."""
    values = list(gradients.values())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values)))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return dict(zip(gradients, torch._foreach_mul(values, scale), strict=True))


def penalty_gradient(
    params: Tensors,
    anchor: Tensors,
    importance: Tensors,
    coefficient: float,
    offset: Tensors | None = None,
) -> list[Tensor]:
    """Return d/d theta of coefficient * sum_i Omega_i (theta_i - theta*_i)^2, as a list.

    theta* is the anchor, plus an `offset` if there is one.
    """
    difference = list(torch._foreach_sub(list(params.values()), list(anchor.values())))
    if offset:
        torch._foreach_sub_(difference, list(offset.values()))
    torch._foreach_mul_(difference, list(importance.values()))
    torch._foreach_mul_(difference, 2.0 * coefficient)
    return difference


def penalty(params: Tensors, anchor: Tensors, importance: Tensors, coefficient: float) -> Tensor:
    """Return coefficient * sum_i Omega_i (theta_i - theta*_i)^2."""
    terms = [(importance[n] * (params[n] - anchor[n]) ** 2).sum() for n in params]
    return coefficient * torch.stack(terms).sum()


def completed_square(
    anchor: Tensors, offset: Tensors, importance: Tensors, params: Tensors, added: Tensors
) -> tuple[Tensors, Tensors]:
    """Add Omega (theta - a - o)^2 and Omega' (theta - theta')^2 into one square around theta' + o'.

    Equal up to a constant. The anchor is kept in two parts, since their sum in float32 cannot tell
    theta' + o' from theta' where o' is small, and Adam makes full steps of what is lost.

    Args:
        anchor, offset: a and o.
        importance: Omega.
        params, added: theta' and Omega'.

    Returns:
        The offset o' = Omega / (Omega + Omega') (a - theta' + o), 0 where Omega is 0, and the
        importance Omega + Omega'.
    """
    total = {n: importance[n] + added[n] for n in params}
    merged = {}
    for n, p in params.items():
        share = importance[n] / torch.where(total[n] > 0, total[n], 1.0)
        merged[n] = share * (anchor[n] - p + offset[n])
    return merged, total

"""Fisher estimates for PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrun.algorithms.ewc import RUNNING_DECAY, EWCState

Tensors = dict[str, Tensor]


def label_losses(fisher: str, weight: str, logits: Tensor, y: Tensor, draw: Tensor) -> Tensor:
    """Return the (B,) losses whose squared gradients the estimate averages.

    Args:
        fisher, weight: `fisher` and `fisher_weight` of EWCOptions.
        logits: (B, C) of the allowed classes.
        y: (B,) true labels; for "exact", the class whose term is computed.
        draw: (B,) uniform in [0, 1), which chooses the labels of "sample".
    """
    p = logits.detach().softmax(1)
    if fisher == "pred":
        y = p.argmax(1)
    elif fisher == "sample":
        y = (p.cumsum(1) < draw[:, None]).sum(1).clamp(max=p.shape[1] - 1)
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    if fisher == "exact" or weight == "p":
        losses = losses * p.gather(1, y[:, None])[:, 0].sqrt()  # p after squaring
    return losses


def running_state(state: EWCState, gradients: Tensors, every: int) -> EWCState:
    """Return the state after another batch gradient, with an update after `every` steps."""
    squares = {n: state.squares[n] + g**2 for n, g in gradients.items()}
    state = state._replace(squares=squares, count=state.count + 1)
    due = state.count % every == 0  # an array, on which a compiled step cannot branch
    after = updated(state, every)
    return state._replace(
        running={n: torch.where(due, f, state.running[n]) for n, f in after.running.items()},
        squares={n: torch.where(due, 0.0, s) for n, s in squares.items()},
    )


def updated(state: EWCState, steps: int) -> EWCState:
    """Return the state after an update of the running Fisher by the squares of some steps."""
    rate = (1 - RUNNING_DECAY) / steps
    running = {n: RUNNING_DECAY * state.running[n] + rate * s for n, s in state.squares.items()}
    squares = {n: torch.zeros_like(s) for n, s in state.squares.items()}
    return state._replace(squares=squares, running=running)


def unit_scaled(running: Tensors) -> Tensors:
    """Return the running Fisher, min-max scaled to [0, 1] over all parameters."""
    values = torch.cat([f.flatten() for f in running.values()])
    low, high = values.min(), values.max()
    span = (high - low).clamp(min=torch.finfo(values.dtype).tiny)
    return {n: (f - low) / span for n, f in running.items()}


def normalized(fisher: Tensors, how: str) -> Tensors:
    """Return a Fisher divided by its largest element ("max"), by the "sum" of all, or as it is."""
    if how == "none":
        return fisher
    values = torch.cat([f.flatten() for f in fisher.values()])
    size = values.max() if how == "max" else values.sum()
    size = size.clamp(min=torch.finfo(values.dtype).tiny)
    return {n: f / size for n, f in fisher.items()}

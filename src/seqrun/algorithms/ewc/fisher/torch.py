"""Fisher estimates for PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrun.algorithms.ewc import RUNNING_DECAY, RUNNING_EVERY, EWCState

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


def running_state(state: EWCState, gradients: Tensors) -> EWCState:
    """Return the state after another batch gradient entered the running Fisher."""
    squares = {n: state.squares[n] + g**2 for n, g in gradients.items()}
    count = state.count + 1
    due = count % RUNNING_EVERY == 0  # an array, on which a compiled step cannot branch
    rate = (1 - RUNNING_DECAY) / RUNNING_EVERY
    running = {
        n: torch.where(due, RUNNING_DECAY * f + rate * squares[n], f)
        for n, f in state.running.items()
    }
    squares = {n: torch.where(due, 0.0, s) for n, s in squares.items()}
    return state._replace(squares=squares, running=running, count=count)


def unit_scaled(running: Tensors) -> Tensors:
    """Return the running Fisher, min-max scaled to [0, 1] over all parameters."""
    values = torch.cat([f.flatten() for f in running.values()])
    low, high = values.min(), values.max()
    span = (high - low).clamp(min=torch.finfo(values.dtype).tiny)
    return {n: (f - low) / span for n, f in running.items()}

"""What is compiled on PyTorch: a fixed rule, never a matter of timing."""

from __future__ import annotations

WORTH_STEPS = 30_000
"""Planned steps of a run from which compiling them pays.

Measured on 2 cores with an MLP 784-256-256-10 at batch 10: preparing a program that was compiled
before takes 4 seconds, as long as 18,000 steps of naive save (10,000 of EWC), compiling one for the
first time 16 seconds, as long as 71,000 (42,000), and 26 where torch has compiled nothing yet. In
between it pays in sweeps and several seeds: at 30,000 steps a first run loses what four later ones
(of EWC one) gain. Larger steps compile longer: for ER's 30 seconds nine later runs make up.
"""
WORTH_LESS_THAN = 5e7
"""Multiply-adds of a batch's forward pass up to which whole steps are compiled.

Beyond, the time is that of the matrix products and convolutions themselves, and compiling the
network alone, which lays out and fuses what is between its convolutions, takes less long.
"""
WORTH_MULTIPLY_ADDS = 4e12
"""Planned multiply-adds of all forward passes from which compiling the network pays.

Measured on 2 cores with ResNet18Thin at batch 10: compiling takes a minute, which a sixth of ten
minutes' training makes good.
"""


def to_compile(
    total_steps: int,
    multiply_adds_per_batch: int,
    device_kind: str,
    convolves: bool,
    *,
    always: bool = False,
) -> str | None:
    """Return what is compiled in a run of so many steps, of so much work each.

    Args:
        total_steps: that the run plans.
        multiply_adds_per_batch: of a batch's forward pass.
        device_kind: "cpu" or "cuda".
        convolves: whether the network has convolutions.
        always: ask not whether it pays.

    Returns:
        "steps", "network" or None.
    """
    if device_kind == "cuda" or multiply_adds_per_batch < WORTH_LESS_THAN:
        return "steps" if always or total_steps >= WORTH_STEPS else None
    if convolves and total_steps * multiply_adds_per_batch >= WORTH_MULTIPLY_ADDS:
        return "network"
    return ("network" if convolves else "steps") if always else None

"""Which part of a run PyTorch compiles: a fixed rule, independent of timing."""

from __future__ import annotations

WORTH_STEPS = 30_000
"""Planned steps of a run from which compiling them saves time.

Measured on 2 cores with an MLP 784-256-256-10 at batch size 10:

- Loading a program that was compiled before takes 4 seconds, which 18,000 compiled steps of naive
  save (10,000 of EWC).
- Compiling it for the first time takes 16 seconds, which 71,000 steps save (42,000 of EWC), or 26
  seconds if torch has compiled nothing before.

Between these numbers compiling pays for sweeps and several seeds: at 30,000 steps the first run
loses as much time as four later runs gain (one later run of EWC). Larger steps take longer to
compile: 30 seconds for ER, which nine later runs gain.
"""
WORTH_LESS_THAN = 5e7
"""Multiply-adds of a batch's forward pass up to which whole steps are compiled.

Above it, most time is spent in matrix products and convolutions. Compiling only the network is then
enough, since it optimizes the layout and fuses the operations between convolutions, and it takes
less time.
"""
WORTH_MULTIPLY_ADDS = 4e12
"""Planned multiply-adds of all forward passes from which compiling the network saves time.

Measured on 2 cores with ResNet18Thin at batch size 10: compiling takes a minute and saves a sixth
of the training time, so ten minutes of training make up for it.
"""


def to_compile(
    total_steps: int,
    multiply_adds_per_batch: int,
    device_kind: str,
    convolves: bool,
    *,
    always: bool = False,
) -> str | None:
    """Return which part of a run to compile.

    Args:
        total_steps: training steps planned for the run.
        multiply_adds_per_batch: of a batch's forward pass.
        device_kind: "cpu" or "cuda".
        convolves: whether the network has convolutions.
        always: compile even if it does not save time.

    Returns:
        "steps" (whole training steps), "network" (only the network), or None.
    """
    if device_kind == "cuda" or multiply_adds_per_batch < WORTH_LESS_THAN:
        return "steps" if always or total_steps >= WORTH_STEPS else None
    if convolves and total_steps * multiply_adds_per_batch >= WORTH_MULTIPLY_ADDS:
        return "network"
    return ("network" if convolves else "steps") if always else None

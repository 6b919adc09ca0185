"""Learning-rate schedules within tasks, as arrays of factors of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqrun.training.options import TrainingOptions

LR_FACTOR = "lr_factor"
"""Name of the plan array with the factor of each step's learning rate."""
RISING, START = 0.3, 1 / 25
"""Of one_cycle: the fraction of steps in which the rate rises, and the factor it starts from."""


def with_factors(
    segments: Sequence[dict[str, np.ndarray]],
    options: TrainingOptions,
    *,
    first: int,
    total: int,
    epoch_steps: int,
) -> list[dict[str, np.ndarray]]:
    """Add each step's learning-rate factor to the plan of an epoch.

    Args:
        segments: the epoch's plan arrays, (steps, ...).
        options: the schedule.
        first: steps before this epoch, in the task or the run, as `lr_schedule_scope` says.
        total: planned steps of the task or the run.
        epoch_steps: steps of an epoch.
    """
    done, scheduled = first, []
    for segment in segments:
        steps = len(segment["index"])
        factor = factors(options, np.arange(done, done + steps), total, epoch_steps)
        scheduled.append(segment | {LR_FACTOR: factor})
        done += steps
    return scheduled


def factors(options: TrainingOptions, step: np.ndarray, total: int, epoch_steps: int) -> np.ndarray:
    """Return the factors of the steps `step` (from 0), float32.

    They rise linearly to 1 in the first `lr_warmup_steps` steps; the schedule is over the rest and
    reaches `lr_floor` in the last step.

    - linear: 1 - (1 - floor) u, where u goes from 0 to 1.
    - cosine: floor + (1 - floor) (1 + cos(pi u)) / 2 (Loshchilov & Hutter 2017, 1608.03983, eq. 5);
      with `lr_restart_epochs` u starts from 0 again, after cycles that are `lr_restart_factor`
      times as long each.
    - step: `lr_step_factor` to the number of times that `lr_step_epochs` epochs have passed.
    - one_cycle: from 1/25 to 1 in the first 30 % of the steps, and to the floor in the rest, both
      along a cosine (Smith & Topin 2019, 1708.07120, in torch's form).
    """
    warmup, floor = options.lr_warmup_steps, options.lr_floor
    s = np.maximum(step - warmup, 0).astype(np.float64)
    rest = max(total - warmup, 1)
    u = np.minimum(s / max(rest - 1, 1), 1.0)
    if options.lr_schedule == "linear":
        value = 1.0 - (1.0 - floor) * u
    elif options.lr_schedule == "cosine":
        if options.lr_restart_epochs is not None:
            length = options.lr_restart_epochs * epoch_steps
            u = _in_cycle(s, length, float(options.lr_restart_factor))
        value = _cosine(u, 1.0, floor)
    elif options.lr_schedule == "step":
        passed = s // (options.lr_step_epochs * epoch_steps)
        value = np.maximum(options.lr_step_factor**passed, floor)
    elif options.lr_schedule == "one_cycle":
        top = RISING * rest - 1.0
        falling = np.clip((s - top) / max(rest - 1 - top, 1e-9), 0.0, 1.0)
        value = np.where(
            s < top, _cosine(s / max(top, 1e-9), START, 1.0), _cosine(falling, 1.0, floor)
        )
    else:
        value = np.ones_like(s)
    return np.where(step < warmup, (step + 1) / max(warmup, 1), value).astype(np.float32)


def _cosine(u: np.ndarray, start: float, end: float) -> Any:
    return end + (start - end) * (1.0 + np.cos(np.pi * u)) / 2.0


def _in_cycle(s: np.ndarray, length: float, factor: float) -> np.ndarray:
    """Return how far the steps are in their cycles, in [0, 1)."""
    if factor == 1.0:
        return (s % length) / length
    cycle = np.floor(np.log1p(s / length * (factor - 1.0)) / np.log(factor) + 1e-12)
    begin = length * (factor**cycle - 1.0) / (factor - 1.0)
    return np.clip((s - begin) / (length * factor**cycle), 0.0, 1.0)

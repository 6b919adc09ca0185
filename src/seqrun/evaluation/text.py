"""Format numbers and names of metrics for display, the same in every output."""

from __future__ import annotations


def percent(
    fraction: float | None,
    half_width: float | None = None,
    *,
    digits: int = 1,
    signed: bool = False,
    unit: str = "",
    undefined: str = "undefined",
) -> str:
    """Return a fraction in percent, such as "81.2", "81.2 ± 0.4" or "+3.0".

    Args:
        fraction: the number; None = undefined.
        half_width: fraction to show after ±; None = do not show ±.
        digits: number of decimals.
        signed: write "+" before a positive number.
        unit: suffix, such as " %".
        undefined: text for an undefined number.
    """
    if fraction is None:
        return undefined
    number = points(fraction, digits)
    shown = f"{number:+.{digits}f}" if signed else f"{number:.{digits}f}"
    half = "" if half_width is None else f" ± {points(half_width, digits):.{digits}f}"
    return f"{shown}{half}{unit}"


def points(fraction: float, digits: int = 1) -> float:
    """Return a fraction in percentage points, rounded; 0.0 instead of -0.0."""
    return round(100 * fraction, digits) + 0.0


def metric_label(metric: str) -> str:
    """Return the label of a metric, such as "average accuracy, task given"."""
    suffix = ", task given" if metric.endswith("_task_aware") else ""
    return metric.removesuffix("_task_aware").replace("_", " ") + suffix

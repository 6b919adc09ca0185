"""The verdict of a reproduction: measured numbers compared with published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np

from seqrun.checks import ConfigError, at_least, nearest, one_of, whole, within
from seqrun.evaluation.metrics import half_width, published_metrics, summarise

STATUSES = ("confirmed", "unconfirmed")
MACHINES = ("cpu", "gpu")
KEY = "expected"
VERDICTS = ("reproduced", "above", "below", "inconclusive")
SMALLEST_TOLERANCE = 0.01
ROUNDING = 1e-9
"""Excess over the tolerance that is allowed: in floats 0.51 - 0.50 is more than 0.01."""
FREE_KEYS = (
    "backend",
    "data_dir",
    "device",
    "hydra",
    "logger",
    "reproductions",
    "resume",
    "seeds_strategy",
)
"""Keys whose overrides do not change the protocol of a reproduction."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A published number.

    Args:
        mean: as published, a fraction.
        std: over the paper's runs, >= 0; None = not published.
        tolerance: largest difference that counts as reproduced, > 0; None = max(2 std, 0.01).

    Raises:
        ConfigError: a value out of range.
    """

    mean: float
    std: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        within("mean", self.mean, -1.0, 1.0)
        if self.std is not None:
            at_least("std", self.std, 0.0)
        if self.tolerance is not None:
            at_least("tolerance", self.tolerance, 0.0, strictly=True)

    @property
    def largest_difference(self) -> float:
        """The tolerance."""
        if self.tolerance is not None:
            return self.tolerance
        return max(2 * (self.std or 0.0), SMALLEST_TOLERANCE)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a paper published about an experiment: the node `expected` of a reproduction.

    Args:
        paper: authors, year and title or number.
        table: the table or figure of the number.
        source: how the number is known.
        status: "confirmed": read in the authors' repository, data or a second source; or
            "unconfirmed": recalled, so that a miss says nothing about the paper.
        num_seeds: runs that the paper averaged over, >= 1; None = not known.
        machine: what runs it within minutes: "cpu" (two cores) or "gpu".
        minutes: run time of one backend on that machine, > 0; None = not measured.
        metrics: name -> number; the verdict on the first is that of the row. Names are those of
            a run's metrics and of `seqrun.evaluation.metrics.PUBLISHED_AS`.

    Raises:
        ConfigError: a value that is not allowed.
    """

    paper: str
    table: str
    source: str
    status: str
    metrics: Mapping[str, Number]
    num_seeds: int | None = None
    machine: str = "cpu"
    minutes: float | None = None

    def __post_init__(self) -> None:
        for key in ("paper", "table", "source"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key).strip():
                raise ConfigError(f"{KEY}.{key}={getattr(self, key)!r}: must be text")
        one_of(f"{KEY}.status", self.status, STATUSES)
        one_of(f"{KEY}.machine", self.machine, MACHINES)
        if self.num_seeds is not None:
            whole(f"{KEY}.num_seeds", self.num_seeds, 1)
        if self.minutes is not None:
            at_least(f"{KEY}.minutes", self.minutes, 0.0, strictly=True)

    @classmethod
    def of(cls, node: Any) -> Expected:
        """Return the content of the node, checked.

        Raises:
            ConfigError: a key or a value that is not allowed.
        """
        _check_keys(KEY, node, cls)
        metrics = node["metrics"]
        if not isinstance(metrics, Mapping) or not metrics:
            raise ConfigError(f"{KEY}.metrics={metrics!r}: must be a node of metrics")
        known = metric_names()
        numbers = {}
        for name, number in metrics.items():
            key = f"{KEY}.metrics.{name}"
            if name not in known:
                allowed = f"must be one of {', '.join(known)}{nearest(name, known)}"
                raise ConfigError(f"{key}: no such metric; {allowed}")
            _check_keys(key, number, Number)
            try:
                numbers[name] = Number(**number)
            except ConfigError as error:
                raise ConfigError(f"{key}.{error}") from None
        return cls(**{**node, "metrics": numbers})


def metric_names() -> list[str]:
    """Return the names of metrics that can be compared with published numbers."""
    of_one_task = np.zeros((2, 1))
    return list(published_metrics(of_one_task, of_one_task))


def judge(
    expected: Expected, runs: Sequence[Any], *, measured_on: str, changed: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare the runs' means with the published ones.

    A verdict is "inconclusive" if the half width of the 95 % interval is unknown (one seed) or
    larger than the tolerance; else "reproduced" if the difference is within the tolerance; else
    "above" or "below".

    Args:
        expected: what was published.
        runs: RunRecords of all seeds.
        measured_on: "test" or "validation".
        changed: overrides that changed the protocol, to be recorded.

    Returns:
        Plain data: the first metric's "verdict", and "metrics" with all comparisons.
    """
    summary = summarise(
        [published_metrics(run.accuracy_matrix, run.accuracy_matrix_task_aware) for run in runs]
    )
    comparisons = {}
    for name, number in expected.metrics.items():
        found = summary[name]
        compared = compare(number, found["mean"], half_width(found))
        comparisons[name] = {**compared, "std": found["std"], "seeds": found["n"]}
    return {
        "verdict": next(iter(comparisons.values()))["verdict"],
        "status": expected.status,
        "paper": expected.paper,
        "table": expected.table,
        "measured_on": measured_on,
        "changed": list(changed),
        "metrics": comparisons,
    }


def protocol_changes(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a command that change the protocol of a reproduction."""
    return [o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0] not in FREE_KEYS]


def compare(number: Number, mean: float | None, half_width: float | None) -> dict[str, Any]:
    """Return the verdict on a measured mean, with the numbers that it is based on.

    Args:
        number: what was published.
        mean: of the seeds, a fraction; None = undefined.
        half_width: of its 95 % interval; None = one seed.
    """
    tolerance = number.largest_difference
    difference = None if mean is None else mean - number.mean
    if difference is None or half_width is None or half_width > tolerance:
        verdict = "inconclusive"
    elif abs(difference) <= tolerance + ROUNDING:
        verdict = "reproduced"
    else:
        verdict = "above" if difference > 0 else "below"
    return {
        "verdict": verdict,
        "expected": number.mean,
        "expected_std": number.std,
        "tolerance": tolerance,
        "mean": mean,
        "half_width": half_width,
        "difference": difference,
    }


def _check_keys(key: str, node: Any, kind: type) -> None:
    """Raise ConfigError unless a node has all required keys of a dataclass and no unknown ones."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}={node!r}: must be a node")
    names = [f.name for f in fields(kind)]
    for name in node:
        if name not in names:
            allowed = f"must be one of {', '.join(names)}{nearest(str(name), names)}"
            raise ConfigError(f"{key}.{name}: no such key; {allowed}")
    for f in fields(kind):
        if f.name not in node and f.default is MISSING:
            raise ConfigError(f"{key}.{f.name}: must be given")

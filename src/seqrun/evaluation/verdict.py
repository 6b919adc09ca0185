"""The verdict of a reproduction: measured numbers compared with published ones.

What is judged is the difference d of the means, ours minus the published one, with its 95 %
interval: within a band around 0 "reproduced", wholly outside "above" or "below", else
"inconclusive".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from seqrun.checks import ConfigError, at_least, must_be_one_of, one_of, whole, within
from seqrun.evaluation.metrics import half_width, published_metrics, student_t_quantile, summarise

STATUSES = ("confirmed", "unconfirmed")
MACHINES = ("cpu", "gpu")
KEY = "expected"
VERDICTS = ("reproduced", "above", "below", "inconclusive")
BEST_TO_WORST = ("reproduced", "inconclusive", "above", "below")
"""A row's verdict is its worst metric's; the last two are alike."""
SMALLEST_BAND = 0.01
ROUNDING = 1e-9
"""Excess over the band that is allowed: in floats 0.51 - 0.50 is more than 0.01."""
FEWEST_SEEDS, MOST_SEEDS = 5, 30
"""What a reproduction is run with."""
MOST_IMAGINED = 1000
"""Where a number of seeds would decide that is larger, none is allowed."""
FREE_KEYS = (
    "backend",
    "data_dir",
    "device",
    "hydra",
    "logger",
    "reproductions",
    "resume",
    "seed",
    "seeds_strategy",
)
"""Keys whose overrides do not change the protocol of a reproduction."""


class Sample(NamedTuple):
    """Our runs of a metric.

    Attributes:
        mean: over the seeds, a fraction; None = undefined.
        std: sample standard deviation; None = one seed.
        n: number of seeds.
    """

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Number:
    """A published number.

    Args:
        mean: as published, a fraction.
        std: over the paper's runs, >= 0; None = not published: ours stands for it.
        tolerance: largest difference that counts as reproduced, > 0, where a source states one, to
            which the number is exact; None = two deviations, 0.01 at least.

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
    def deviation_of(self) -> str:
        """Whose deviation the published number has: "published", "ours" or "none" (exact)."""
        if self.tolerance is not None:
            return "none"
        return "ours" if self.std is None else "published"

    def band(self, our_std: float | None) -> float:
        """Return the largest difference that counts as reproduced.

        Args:
            our_std: stands for a deviation that was not published.
        """
        if self.tolerance is not None:
            return self.tolerance
        std = our_std if self.std is None else self.std
        return max(2 * (std or 0.0), SMALLEST_BAND)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a paper published about an experiment: the node `expected` of a reproduction.

    Args:
        paper: authors, year and title or number.
        table: the table or figure of the number.
        source: how the number is known.
        status: "confirmed": read in the authors' repository, data or a second source; or
            "unconfirmed": recalled, so that a miss says nothing about the paper.
        num_seeds: runs that the paper averaged over, >= 1; None = not known, counted as 1.
        control: the method at strength 0 under the same protocol, which must not pass for it:
            <paper>/<row>, overrides of this row, or "naive" in place of its algorithm; None if it
            is that itself.
        machine: what runs it within minutes: "cpu" (two cores) or "gpu".
        minutes: run time of one backend on that machine, > 0; None = not measured.
        metrics: name -> number; the worst verdict is that of the row. Names are those of
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
    control: str | Sequence[str] | None = None
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
        control = [] if self.control is None else self.control
        texts = [control] if isinstance(control, str) else control
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            allowed = "must be <paper>/<row>, naive or a list of overrides"
            raise ConfigError(f"{KEY}.control={self.control!r}: {allowed}")
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
                raise ConfigError(f"{key}: no such metric; {must_be_one_of(known, name)}")
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

    Args:
        expected: what was published.
        runs: RunRecords of all seeds.
        measured_on: "test" or "validation".
        changed: overrides that changed the protocol, to be recorded.

    Returns:
        Plain data: the worst metric's "verdict", and "metrics" with all comparisons.
    """
    comparisons = compare_all(expected, [metrics_of(run) for run in runs])
    return {
        "verdict": worst(found["verdict"] for found in comparisons.values()),
        "status": expected.status,
        "paper": expected.paper,
        "table": expected.table,
        "measured_on": measured_on,
        "changed": list(changed),
        "metrics": comparisons,
    }


def metrics_of(run: Any) -> dict[str, float | None]:
    """Return every metric of a RunRecord that can be compared with published ones."""
    aware = run.accuracy_matrix_task_aware
    return published_metrics(run.accuracy_matrix, aware, run.test_sizes)


def compare_all(
    expected: Expected, runs: Sequence[Mapping[str, float | None]]
) -> dict[str, dict[str, Any]]:
    """Return expected metric -> comparison, from each run's metrics."""
    summary = summarise([{name: run[name] for name in expected.metrics} for run in runs])
    comparisons = {}
    for name, number in expected.metrics.items():
        found = summary[name]
        ours = Sample(found["mean"], found["std"], found["n"])
        compared = compare(number, expected.num_seeds, ours)
        comparisons[name] = {**compared, "half_width": half_width(found)}
    return comparisons


def worst(verdicts: Iterable[str]) -> str:
    """Return the worst of a row's verdicts: a decided miss, then an undecided one."""
    return max(verdicts, key=lambda verdict: min(BEST_TO_WORST.index(verdict), 2))


def protocol_changes(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a command that change the protocol of a reproduction."""
    return [o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0] not in FREE_KEYS]


def compare(number: Number, num_runs: int | None, ours: Sample) -> dict[str, Any]:
    """Return the verdict on our runs, with the numbers that it is based on.

    Args:
        number: what was published.
        num_runs: that the published number is the mean of; None = not known.
        ours: what we measured.
    """
    band = number.band(ours.std)
    difference = None if ours.mean is None else ours.mean - number.mean
    verdict, half, seeds = "inconclusive", None, None
    if difference is not None and ours.std is not None:
        half = float(_half_widths(number, num_runs, ours.std, np.array(ours.n)))
        verdict = _verdict(difference, half, band)
        if verdict == "inconclusive":
            seeds = _deciding_seeds(number, num_runs, ours)
    return {
        "verdict": verdict,
        "expected": number.mean,
        "expected_std": number.std,
        "deviation_of": number.deviation_of,
        "band": band,
        "mean": ours.mean,
        "std": ours.std,
        "seeds": ours.n,
        "difference": difference,
        "difference_half_width": half,
        "seeds_that_decide": seeds,
    }


def tells_apart(number: Number, num_runs: int | None, ours: Sample, control: Sample) -> bool | None:
    """Return whether the method at strength 0 lies outside the band; None = unknown.

    Where it may lie within, a method that does nothing would be reproduced as well.

    Args:
        number, num_runs, ours: as in `compare`.
        control: runs of the method at strength 0.
    """
    if control.mean is None or control.std is None or ours.std is None:
        return None
    half = _half_widths(number, num_runs, control.std, np.array(control.n), ours.std)
    verdict = _verdict(control.mean - number.mean, float(half), number.band(ours.std))
    return verdict in ("above", "below")


def seeds_needed(expected: Expected, runs: Sequence[Mapping[str, float | None]]) -> int:
    """Return how many seeds a row is to be run with, by the deviation of the first FEWEST_SEEDS.

    So many that our own interval is at most half as wide as the band, of every metric; FEWEST_SEEDS
    at least and MOST_SEEDS at most. It never depends on a mean: more seeds until a verdict pleases
    would bias it.
    """
    needed = FEWEST_SEEDS
    number_of_seeds = np.arange(FEWEST_SEEDS, MOST_SEEDS + 1)
    for name, number in expected.metrics.items():
        std = summarise([{name: run[name]} for run in runs[:FEWEST_SEEDS]])[name]["std"]
        if std is not None:
            own = student_t_quantile(0.975, number_of_seeds - 1) * std / np.sqrt(number_of_seeds)
            enough = number_of_seeds[own <= number.band(std) / 2]
            needed = max(needed, int(enough[0]) if len(enough) else MOST_SEEDS)
    return needed


def _half_widths(
    number: Number,
    num_runs: int | None,
    std: float,
    n: np.ndarray,
    missing_std: float | None = None,
) -> np.ndarray:
    """Return half the 95 % interval of our mean minus the published one, for numbers of seeds.

    With both deviations: Welch (1947). With ours alone there are its n - 1 degrees of freedom; so
    there are where the number of published runs is not known and counts as 1.

    Args:
        number, num_runs: what was published.
        std: ours.
        n: numbers of our seeds, >= 2.
        missing_std: stands for a deviation that was not published; None = `std`.
    """
    runs = num_runs or 1
    published_std = number.std
    if number.deviation_of == "ours":
        published_std = std if missing_std is None else missing_std
    theirs = 0.0 if number.deviation_of == "none" else (published_std or 0.0) ** 2 / runs
    ours = std**2 / n
    degrees = n - 1.0
    if number.deviation_of == "published" and runs > 1 and ours.min() + theirs > 0:
        degrees = (ours + theirs) ** 2 / (ours**2 / (n - 1) + theirs**2 / (runs - 1))
    return student_t_quantile(0.975, degrees) * np.sqrt(ours + theirs)


def _verdict(difference: float, half: float, band: float) -> str:
    if abs(difference) + half <= band + ROUNDING:
        return "reproduced"
    if abs(difference) - half <= band + ROUNDING:
        return "inconclusive"
    return "above" if difference > 0 else "below"


def _deciding_seeds(number: Number, num_runs: int | None, ours: Sample) -> int | str:
    """Return how many seeds with our mean and deviation would decide, or "none"."""
    assert ours.mean is not None and ours.std is not None
    n = np.arange(ours.n + 1, MOST_IMAGINED + 1)
    difference, band = ours.mean - number.mean, number.band(ours.std)
    halves = _half_widths(number, num_runs, ours.std, n)
    decided = (_verdict(difference, half, band) != "inconclusive" for half in halves.tolist())
    return next((seeds for seeds, is_so in zip(n.tolist(), decided, strict=True) if is_so), "none")


def _check_keys(key: str, node: Any, kind: type) -> None:
    """Raise ConfigError unless a node has all required keys of a dataclass and no unknown ones."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}={node!r}: must be a node")
    names = [f.name for f in fields(kind)]
    for name in node:
        if name not in names:
            raise ConfigError(f"{key}.{name}: no such key; {must_be_one_of(names, name)}")
    for f in fields(kind):
        if f.name not in node and f.default is MISSING:
            raise ConfigError(f"{key}.{f.name}: must be given")

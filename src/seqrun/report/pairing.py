"""Compare pairs of experiments over their common seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from seqrun.evaluation.metrics import lower_is_better, summarise
from seqrun.report.differences import differing_values, short_names, varying_keys, yaml_text
from seqrun.report.records import ExperimentRuns, makes_stream

METRICS = ("average_accuracy", "average_forgetting")
MAX_ALL_PAIRS = 12
"""With more experiments on one stream, each is compared only with the best."""


@dataclass(frozen=True)
class Pair:
    """Two experiments on one stream.

    Attributes:
        first: one experiment.
        second: the other experiment.
        seeds: the seeds that both have completed.
        differences: metric -> {"mean", "std", "ci95", "n"} of first minus second over `seeds`.
        config: the differences between their configurations, as text.
    """

    first: ExperimentRuns
    second: ExperimentRuns
    seeds: tuple[int, ...]
    differences: dict[str, dict[str, Any]]
    config: str


def streams(experiments: Sequence[ExperimentRuns]) -> list[list[ExperimentRuns]]:
    """Group the experiments with results by stream; the best average accuracy is first."""
    groups: dict[str, list[ExperimentRuns]] = {}
    for experiment in experiments:
        if experiment.runs:
            groups.setdefault(experiment.stream, []).append(experiment)
    for group in groups.values():
        group.sort(key=score, reverse=True)
    return list(groups.values())


def titles(groups: Sequence[Sequence[ExperimentRuns]]) -> list[str]:
    """Return a title for each stream: what distinguishes its experiments from the others."""
    firsts = [group[0] for group in groups]
    keys = [key for key in varying_keys(firsts) if makes_stream(key)]
    short = short_names(keys)
    several = len({first.device for first in firsts}) > 1
    found = []
    for first in firsts:
        names = first.names
        parts = [f"{names['benchmark']}, {names['backbone']} ({names['backend']})"]
        config = first.config
        parts += [f"{short[key]}={yaml_text(config[key])}" for key in keys if key in config]
        parts += [f"{first.measured_on} data"] * (first.measured_on != "test")
        parts += [str(first.device)] * several
        found.append(", ".join(parts))
    return found


def score(experiment: ExperimentRuns) -> float:
    """Return the mean average accuracy, for ranking; if undefined, the lowest score."""
    mean = experiment.summary["average_accuracy"]["mean"]
    return -1.0 if mean is None else mean


def rank(experiment: ExperimentRuns, metric: str) -> float:
    """Return a sort key by which the best mean comes first, and an undefined one last."""
    mean = experiment.summary.get(metric, {}).get("mean")
    return math.inf if mean is None else mean if lower_is_better(metric) else -mean


def compare_pairs(group: Sequence[ExperimentRuns]) -> list[Pair]:
    """Compare the pairs of experiments on one stream that have a seed in common.

    The interval of a paired difference is the one-sample t-interval of the differences per seed
    (Student 1908). A seed fixes stream, batches and initial weights of both experiments, so their
    common effect cancels. Intervals are not corrected for the number of comparisons.

    Args:
        group: experiments on one stream, best first, from `streams`.
    """
    everything = len(group) <= MAX_ALL_PAIRS
    pairs = combinations(group, 2) if everything else ((group[0], other) for other in group[1:])
    found = [compare_two(first, second) for first, second in pairs]
    return [pair for pair in found if pair.seeds]


def compare_two(first: ExperimentRuns, second: ExperimentRuns) -> Pair:
    """Return the paired comparison of two experiments, first minus second."""
    seeds = tuple(seed for seed in first.runs if seed in second.runs)
    differences: list[dict[str, float | None]] = []
    for seed in seeds:
        one, other = first.runs[seed].metrics, second.runs[seed].metrics
        differences.append({m: _difference(one.get(m), other.get(m)) for m in METRICS})
    return Pair(
        first, second, seeds, summarise(differences), differing_values(first.config, second.config)
    )


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second

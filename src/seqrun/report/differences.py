"""Differences between experiments: keys whose values vary, and labels made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqrun.records.results import NAMES
from seqrun.report.records import TARGET, ExperimentRuns

ABSENT = "–"
NOT_COLUMNS = ("backend",)
"""Keys that the columns of names already show."""


def varying_keys(experiments: Sequence[ExperimentRuns]) -> list[str]:
    """Return the dotted keys that become columns, in the order of the configurations.

    A key varies if the experiments that have it differ in its value. Whether an experiment has a
    key usually depends on its algorithm or backbone, so a missing key counts only between
    experiments with the same algorithm, benchmark, backbone and backend.
    """
    keys = dict.fromkeys(key for experiment in experiments for key in experiment.config)
    same_names: dict[tuple[str, ...], list[ExperimentRuns]] = {}
    for experiment in experiments:
        names = tuple(experiment.names[name] for name in NAMES)
        same_names.setdefault(names, []).append(experiment)

    def varies(key: str) -> bool:
        if key in NOT_COLUMNS:
            return False
        given = {repr(e.config[key]) for e in experiments if key in e.config}
        if len(given) > 1 and not key.endswith(TARGET):
            return True
        return any(
            len({repr(e.config.get(key, ABSENT)) for e in group}) > 1
            for group in same_names.values()
        )

    return [key for key in keys if varies(key)]


def varying_names(experiments: Sequence[ExperimentRuns]) -> list[str]:
    """Return the columns of names: algo, and benchmark, backbone and backend where they vary."""
    return [
        name
        for name in NAMES
        if name == "algo" or len({experiment.names[name] for experiment in experiments}) > 1
    ]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return dotted key -> its last part, or the whole key if the last part is not unique."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: part if last.count(part) == 1 and part not in NAMES else key
        for key, part in zip(keys, last, strict=True)
    }


def yaml_text(value: Any) -> str:
    """Return a value in YAML, as one would write it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def labels(experiments: Sequence[ExperimentRuns]) -> dict[ExperimentRuns, str]:
    """Return a distinguishing name for each experiment, such as "ewc, lr=0.1"."""
    names = [name for name in varying_names(experiments) if name != "algo"]
    keys = varying_keys(experiments)
    short = short_names(keys)
    found = {}
    for experiment in experiments:
        own = [experiment.names["algo"], *(experiment.names[name] for name in names)]
        config = experiment.config
        own += [f"{short[key]}={yaml_text(config[key])}" for key in keys if key in config]
        found[experiment] = ", ".join(own)
    return found


def differing_values(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Return the common keys whose values differ in two configurations: "lr: 0.1 | 0.01"."""
    shared = [key for key in first if key in second and not key.endswith(TARGET)]
    short = short_names(shared)
    return "; ".join(
        f"{short[key]}: {yaml_text(first[key])} | {yaml_text(second[key])}"
        for key in shared
        if first[key] != second[key]
    )

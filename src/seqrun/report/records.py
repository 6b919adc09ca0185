"""The runs of a report: found on disk, read, and grouped into experiments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seqrun.callbacks import OBSERVERS
from seqrun.config.targets import TARGET
from seqrun.evaluation.metrics import mean_matrix, summarise
from seqrun.files import flatten
from seqrun.records.locks import is_locked
from seqrun.records.results import FILE, NAMES, RecordError, Results, RunRecord
from seqrun.runs.directory import CONFIG_FILE

NOT_COMPARED = (
    "seed",
    "logger",
    "data_dir",
    "resume",
    "seeds_strategy",
    "allow_targets",
    "expected",
    "tags",
    "notes",
    "optimized_metric",
)
"""Top-level keys of a configuration that do not distinguish experiments."""
WATCHING = [kind.__name__ for kind in OBSERVERS]
SAME_STREAM = ("benchmark.batch_size", "benchmark.eval_batch_size", "benchmark.path")
"""Keys of a benchmark that do not change its tasks or their samples."""


@dataclass(frozen=True)
class Unfinished:
    """A run directory with unfinished seeds.

    Attributes:
        directory: the run directory.
        name: its algorithm and benchmark.
        seeds: the unfinished seeds.
        status: "running", "failed" or "interrupted".
        error: message, or "".
    """

    directory: Path
    name: str
    seeds: tuple[int, ...]
    status: str
    error: str


@dataclass(kw_only=True, eq=False)
class ExperimentRuns:
    """The runs of one experiment, which differ only in their seed.

    Attributes:
        names: {"algo", "benchmark", "backbone", "backend"} -> name.
        measured_on: "test" or "validation".
        device: kind of device; None while unknown.
        config: dotted key -> value of everything that defines the experiment, without the seed.
        runs: seed -> the record of a completed run.
        directories: seed -> directory of that run.
        unfinished: directories of this experiment with unfinished seeds.
    """

    names: Mapping[str, str]
    measured_on: str
    device: str | None
    config: Mapping[str, Any]
    runs: dict[int, RunRecord] = field(default_factory=dict)
    directories: dict[int, Path] = field(default_factory=dict)
    unfinished: list[Unfinished] = field(default_factory=list)

    @cached_property
    def summary(self) -> dict[str, dict[str, Any]]:
        """Metric -> {"mean", "std", "ci95", "n"} over all completed seeds."""
        return summarise([run.metrics for run in self.runs.values()])

    @property
    def matrices(self) -> list[np.ndarray]:
        """(T+1, T) float64 accuracy matrices of the completed seeds."""
        return [run.accuracy_matrix for run in self.runs.values()]

    @property
    def mean_matrix(self) -> np.ndarray | None:
        """(T+1, T) float64 mean over the completed seeds; None if there are none."""
        return mean_matrix(self.matrices) if self.runs else None

    @cached_property
    def stream(self) -> str:
        """A key that is equal for experiments whose scores can be compared seed by seed."""
        names = {key: value for key, value in self.names.items() if key != "algo"}
        kept = {key: self.config[key] for key in self.config if makes_stream(key)}
        tasks = {matrix.shape[1] for matrix in self.matrices}
        return _key([names, self.measured_on, self.device, kept, sorted(tasks)])


@dataclass(kw_only=True, eq=False)
class Collection:
    """The experiments that were found, and what could not be used.

    Attributes:
        experiments: sorted by benchmark, backbone, backend, algorithm.
        unreadable: messages about records that cannot be read.
        replaced: directories superseded by a newer run of the same experiment and seed.
    """

    experiments: list[ExperimentRuns]
    unreadable: list[str]
    replaced: list[Path]

    @property
    def num_runs(self) -> int:
        """Number of completed runs, one per seed."""
        return sum(len(experiment.runs) for experiment in self.experiments)

    @property
    def unfinished(self) -> list[Unfinished]:
        """All run directories with unfinished seeds."""
        return [entry for experiment in self.experiments for entry in experiment.unfinished]


def find(roots: Iterable[Path]) -> list[Path]:
    """Return the run directories at or below `roots`, each once, sorted by path."""
    found = {path.parent.resolve(): path.parent for root in roots for path in root.rglob(FILE)}
    return sorted(found.values())


def collect(directories: Sequence[Path]) -> Collection:
    """Read run directories and group those that differ only in their seed.

    Of several completed runs of the same experiment and seed, the newest counts.
    """
    collection = Collection(experiments=[], unreadable=[], replaced=[])
    by_config: dict[str, list[ExperimentRuns]] = {}
    found: list[tuple[float, Results]] = []
    for directory in directories:
        try:
            results = Results.read(directory)
            found.append(((directory / FILE).stat().st_mtime, results))
        except (RecordError, OSError) as error:
            collection.unreadable.append(str(error))
    # Newest first; runs whose device is not known yet come last, to join the others.
    found.sort(key=lambda pair: (pair[1].environment.get("device") is None, -pair[0]))
    for _, results in found:
        config = comparable(saved_config(results.directory)) or {"config_hash": results.config_hash}
        names = {key: str(results.name[key]) for key in NAMES}
        device = results.environment.get("device")
        same = by_config.setdefault(_key([names, results.measured_on, config]), [])
        experiment = next((e for e in same if device in (None, e.device)), None)
        if experiment is None:
            experiment = ExperimentRuns(
                names=names, measured_on=results.measured_on, device=device, config=config
            )
            same.append(experiment)
        _add(results, experiment, collection)
    collection.experiments = [e for same in by_config.values() for e in same]
    order = ("benchmark", "backbone", "backend", "algo")
    collection.experiments.sort(
        key=lambda e: (*(e.names[name] for name in order), _sortable(e.config), str(e.device))
    )
    for experiment in collection.experiments:
        experiment.runs = dict(sorted(experiment.runs.items()))
        experiment.directories = dict(sorted(experiment.directories.items()))
        experiment.unfinished.sort(key=lambda entry: entry.directory)
    collection.replaced.sort()
    return collection


def _add(results: Results, experiment: ExperimentRuns, collection: Collection) -> None:
    done = [run for run in results.runs if run.completed or results.status == "completed"]
    for run in done:
        if run.seed not in experiment.runs:
            experiment.runs[run.seed] = run
            experiment.directories[run.seed] = results.directory
        elif results.directory not in collection.replaced:
            collection.replaced.append(results.directory)
    if results.status == "completed":
        return
    abandoned = results.status == "running" and not is_locked(results.directory)
    error = results.error or {}
    message = f"{error.get('type', '')}: {error.get('message', '')}" if error else ""
    experiment.unfinished.append(
        Unfinished(
            directory=results.directory,
            name=f"{experiment.names['algo']} on {experiment.names['benchmark']}",
            seeds=tuple(s for s in results.seeds if s not in {run.seed for run in done}),
            status="interrupted" if abandoned else results.status,
            error=message,
        )
    )


def saved_config(directory: Path) -> dict[str, Any]:
    """Return a run's configuration as plain data; {} if there is no readable one."""
    try:
        config = yaml.safe_load((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value of the part of a configuration that defines the experiment."""
    kept = {key: value for key, value in config.items() if key not in NOT_COMPARED}
    if isinstance(kept.get("callbacks"), Mapping):
        kept["callbacks"] = {k: v for k, v in kept["callbacks"].items() if not _only_watches(v)}
    flat = flatten(kept)
    flat.pop("benchmark.data_dir", None)
    return {key: _whole_floats_as_int(value) for key, value in flat.items()}


def makes_stream(key: str) -> bool:
    """Return whether a dotted key affects the tasks or their samples."""
    return key.split(".")[0] in ("benchmark", "streams") and key not in SAME_STREAM


def _only_watches(node: Any) -> bool:
    target = str(node.get(TARGET)) if isinstance(node, Mapping) else ""
    module, _, kind = target.rpartition(".")
    return node is None or (module.startswith("seqrun.callbacks") and kind in WATCHING)


def _whole_floats_as_int(value: Any) -> Any:
    """Return `value` with whole floats as integers, since 1 and 1.0 give the same run."""
    if isinstance(value, list):
        return [_whole_floats_as_int(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _sortable(config: Mapping[str, Any]) -> list[tuple[str, bool, float, str]]:
    """Return a sort key: numbers by value, so that 9 is before 10, everything else as text."""
    return [
        (key, number, float(value) if number else 0.0, str(value))
        for key, value in sorted(config.items())
        for number in [isinstance(value, (int, float)) and not isinstance(value, bool)]
    ]

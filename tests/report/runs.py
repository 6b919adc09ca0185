"""Run directories for the tests of reports, with records as a run writes them, but no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seqrun.records.results import Results, RunRecord

NAN = float("nan")


def two_tasks(final: float, first: float = 0.9) -> np.ndarray:
    """Return a matrix of two tasks: average accuracy (0.5 + final) / 2, forgetting first - 0.5."""
    return np.array([[0.1, 0.1], [first, NAN], [0.5, final]])


def record(
    directory: Path,
    finals: Mapping[int, float | np.ndarray],
    *,
    algo: str = "ewc",
    backend: str = "torch",
    keys: Mapping[str, Mapping[str, Any]] | None = None,
    status: str = "completed",
    error: Exception | None = None,
    seeds: Sequence[int] | None = None,
    config: bool = True,
) -> Path:
    """Write a run directory and return it.

    Args:
        directory: the directory.
        finals: completed seed -> last accuracy of `two_tasks`, or the whole matrix.
        algo: name of the algorithm.
        backend: name of the backend.
        keys: more keys of groups, such as {"optimizer": {"lr": 0.5}}.
        status: status of the run.
        error: why it failed.
        seeds: all seeds of the run; None = those of `finals`.
        config: whether there is a config.yaml.
    """
    wanted = list(seeds if seeds is not None else finals)
    results = Results.start(
        directory,
        name={"algo": algo, "benchmark": "rotated_digits", "backbone": "mlp", "backend": backend},
        config_hash=directory.name,
        measured_on="test",
        seeds=wanted,
    )
    for seed, final in finals.items():
        matrix = final if isinstance(final, np.ndarray) else two_tasks(final)
        results.update(RunRecord(seed=seed, accuracy_matrix=matrix, device="cpu"), completed=True)
    results.finish(status, error=error)
    experiment: dict[str, Any] = {
        "algo": {"_target_": f"seqrun.algorithms.{algo}.{backend}.X"},
        "benchmark": {"_target_": "b", "num_tasks": 2, "batch_size": 10, "data_dir": "/a"},
        "optimizer": {"_target_": "o", "lr": 0.1},
        "callbacks": {"metrics": {"_target_": "seqrun.callbacks.MetricCallback"}},
        "logger": {"console": {"_target_": "seqrun.loggers.ConsoleLogger"}},
        "backend": backend,
        "seed": wanted if len(wanted) != 1 else wanted[0],
        "data_dir": "/a",
    }
    for group, values in (keys or {}).items():
        experiment[group] = {**experiment.get(group, {}), **values}
    if config:
        (directory / "config.yaml").write_text(
            yaml.safe_dump(experiment, sort_keys=False), encoding="utf-8"
        )
    return directory

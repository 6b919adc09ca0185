"""Merge the files of several seeds into the files at the top of their run directory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqrun.evaluation.figures import save_figures
from seqrun.evaluation.metrics import mean_matrix
from seqrun.files import json_value, matrix_to_csv, write_atomically
from seqrun.loggers.local import FIGURES, METRICS_FILE
from seqrun.records.results import Results

POSITION = ("step", "epoch", "task")
TASK_AWARE = "accuracy_matrix_task_aware"


def aggregate(results: Results, directory: Path, *, figures: bool) -> None:
    """Write metrics.jsonl, the task-aware matrix and figures/ of all seeds, like LocalLogger.

    Args:
        results: the record of a run that has completed all its seeds.
        directory: the directory with the seeds' files, each seed's in seeds/<seed>.
        figures: whether to draw figures.
    """
    seeds = [directory / "seeds" / str(run.seed) / METRICS_FILE for run in results.runs]
    lines = mean_lines(path for path in seeds if path.exists())
    write_atomically(directory / METRICS_FILE, "".join(f"{line}\n" for line in lines))
    runs = [run.accuracy_matrix for run in results.runs]
    aware = [
        run.accuracy_matrix_task_aware
        for run in results.runs
        if run.accuracy_matrix_task_aware is not None
    ]
    if aware:
        write_atomically(directory / f"{TASK_AWARE}.csv", matrix_to_csv(mean_matrix(aware)))
    if figures:
        name = results.name
        title = f"{name['algo']} on {name['benchmark']}, {name['backbone']} ({name['backend']})"
        title += f", mean of {len(runs)} seeds"
        save_figures(directory / FIGURES, mean_matrix(runs), title, runs)
        if aware:
            title += ", task given at test"
            save_figures(directory / FIGURES / TASK_AWARE, mean_matrix(aware), title, aware)


def mean_lines(files: Iterable[Path]) -> Iterator[str]:
    """Merge several metrics.jsonl: yield lines of means, with <name>_std beside each mean.

    Lines are merged if their step, epoch, task and names are the same. The standard deviation is
    the sample's (ddof = 1), null for a single value. Null values are left out.
    """
    found: dict[tuple[Any, ...], list[tuple[float | None, ...]]] = {}
    for file in files:
        counts: dict[tuple[Any, ...], int] = {}
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                values = json.loads(line)
                position = tuple(values.pop(key) for key in POSITION)
                place = (*position, *values)
                counts[place] = counts.get(place, 0) + 1  # a step may log the same names twice
                found.setdefault((counts[place], place), []).append(tuple(values.values()))
    for (_, place), rows in sorted(found.items(), key=lambda item: item[0][1][0]):
        merged: dict[str, Any] = dict(zip(POSITION, place, strict=False))
        for name, column in zip(place[len(POSITION) :], zip(*rows, strict=True), strict=True):
            merged[name], merged[f"{name}_std"] = _mean_and_std(column)
        yield json.dumps(json_value(merged), ensure_ascii=False)


def _mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return mean, None
    return mean, float(np.std(known, ddof=1))

"""--dry-run: print a command's jobs, whether each is completed, and an estimate of the time."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seqrun.cli.job import Job
from seqrun.config.build import build
from seqrun.records.locks import is_locked
from seqrun.records.progress import PHASES
from seqrun.records.results import FILE, RecordError, Results
from seqrun.runs.directory import is_done
from seqrun.sweeps.summary import differing
from seqrun.training.limits import planned_samples

RUNS = Path("runs")
"""Folder of single runs, whose times are also used for the estimate."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A job before it runs.

    Attributes:
        overrides: the overrides that distinguish it from the other jobs.
        directory: its run directory; None if not known yet.
        name: {"algo", "benchmark", "backbone", "backend"} -> name.
        samples: training samples of all its seeds, each counted as often as it is used.
        is_done: whether the directory holds its completed run.
    """

    overrides: tuple[str, ...]
    directory: Path | None
    name: Mapping[str, str]
    samples: int
    is_done: bool


def show(jobs: Sequence[Job]) -> None:
    """Print a command's jobs, whether each is completed, and about how long the others take."""
    samples: dict[str, int] = {}
    previews = []
    for job in jobs:
        seeds = job.experiment.seeds
        algorithm = build(job.experiment, seeds[0])
        lengths = [job.config["training"].get(f"{unit}_per_task") for unit in ("epochs", "steps")]
        stream = str((job.config["benchmark"], lengths))
        if stream not in samples:  # data are loaded once for all jobs of a stream
            samples[stream] = planned_samples(algorithm)
        previews.append(
            Preview(
                overrides=job.overrides,
                directory=job.directory,
                name=algorithm.names,
                samples=samples[stream] * len(seeds),
                is_done=bool(job.directory and is_done(job.directory, job.experiment)),
            )
        )
    trials = jobs[0].trials if jobs else None
    sys.stdout.write("\n".join(preview(previews, trials=trials)) + "\n")


def preview(jobs: Sequence[Preview], *, trials: int | None = None) -> list[str]:
    """Return the lines to print.

    Args:
        jobs: the jobs of the command; for a search, examples of its trials.
        trials: number of trials of the search; None = not a search.
    """
    if not jobs:
        return ["nothing to run"]
    if trials is None:
        names = differing([job.overrides for job in jobs])
        states = [_state(job) for job in jobs]
        width = max(map(len, states))
        lines = [f"{state:{width}}  {name}" for state, name in zip(states, names, strict=True)]
        todo = [job for job in jobs if not job.is_done]
        done = len(jobs) - len(todo)
        count = f"{len(jobs)} job{'s' * (len(jobs) != 1)}, {done} completed, {len(todo)} to run"
    else:
        keys = [o.split("=")[0] for o in jobs[0].overrides]
        lines = [f"a search over {', '.join(keys)}"]
        todo, count = [jobs[0]] * trials, f"{trials} trials, minus those already completed"
    return [*lines, f"{count}: {_estimate(todo)}"]


def _state(job: Preview) -> str:
    if job.is_done:
        return "completed"
    if job.directory is None or not (job.directory / FILE).exists():
        return "new"
    if is_locked(job.directory):
        return "running"
    status = Results.read(job.directory).status
    return "interrupted" if status == "running" else status  # its process was killed


def _estimate(todo: Sequence[Preview]) -> str:
    if not todo:
        return "no time needed"
    folders = {job.directory.parent for job in todo if job.directory} | {RUNS}
    past = _past_rates(folders)
    missing = sorted({_title(job) for job in todo if _title(job) not in past})
    if missing:
        return f"no estimate of time: there is no completed run of {'; '.join(missing)}"
    seconds = sum(job.samples * statistics.median(past[_title(job)]) for job in todo)
    count = sum(len(past[title]) for title in {_title(job) for job in todo})
    return f"about {_readable(seconds)} one after the other, judging by {count} completed runs"


def _title(job: Preview) -> str:
    return " ".join(job.name.values())


def _past_rates(folders: set[Path]) -> dict[str, list[float]]:
    """Return title -> seconds per sample of each completed seed in the folders."""
    found: dict[str, list[float]] = {}
    for path in sorted(path for folder in folders for path in folder.glob(f"*/{FILE}")):
        try:
            results = Results.read(path.parent)
        except RecordError:
            continue
        if results.execution.get("strategy") == "vmap":
            continue  # the recorded time is that of the whole vmap group
        rates = [
            sum(run.timing.get(phase) or 0.0 for phase in PHASES) / run.cost["samples_seen"]
            for run in results.runs
            if run.completed and run.cost.get("samples_seen")
        ]
        found.setdefault(" ".join(results.name.values()), []).extend(rates)
    return {title: rates for title, rates in found.items() if rates}


def _readable(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

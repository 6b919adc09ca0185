"""A multirun as data: its jobs, how each ended, and the summary of all."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrun.config.experiment import Experiment
from seqrun.evaluation.text import metric_label, percent
from seqrun.records.results import FILE


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """One experiment of a multirun, as it was when the multirun started.

    Attributes:
        number: its number in the multirun, from 0.
        name: what distinguishes it from the other jobs.
        overrides: the overrides that it was composed from.
        experiment: the experiment.
        directory: its run directory.
        environment: variables to set while it runs.
        before: number of jobs of the multirun that ended before it was launched.
        total: number of all its jobs; None = those that are launched together.
    """

    number: int
    name: str
    overrides: tuple[str, ...]
    experiment: Experiment
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    before: int = 0
    total: int | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """The experiment as plain data."""
        return self.experiment.config


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        overrides: the job's overrides.
        directory: its run directory.
        status: "completed" or "failed"; in a search "diverged" if it has ended without a finite
            value.
        value: its `optimized_metric`, or a list of several; None if it has none.
        error: why it failed, in one line.
        was_done: whether it had been completed before.
        seconds: how long it took this time.
    """

    overrides: tuple[str, ...]
    directory: Path
    status: str
    value: float | list[float] | None = None
    error: str | None = None
    was_done: bool = False
    seconds: float = 0.0

    @property
    def has_diverged(self) -> bool:
        """Whether its values made it fail: the same values would again."""
        return self.status == "failed" and "TrainingDiverged: " in str(self.error)


def progress(job: SweepJob, outcome: Outcome, place: int, total: int) -> None:
    """Report on stderr how a job ended; stdout is for results.

    Args:
        job, outcome: the job and how it ended.
        place: number of the jobs launched with it that have ended.
        total: number of the jobs launched with it.
    """
    if outcome.status != "completed":
        ending = f"{outcome.status}: {outcome.error}"
    elif outcome.was_done:
        ending = f"completed before, {_shown(outcome.value)}"
    else:
        ending = f"completed, {_shown(outcome.value)}, {outcome.seconds:.1f} s"
    sys.stderr.write(f"[{job.before + place}/{job.total or total}] {job.name}: {ending}\n")


def _shown(value: float | list[float] | None) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(percent(each, unit=" %", undefined="-") for each in values)


def stopped(jobs: Sequence[SweepJob], done: int) -> None:
    """Report on stderr that a signal ended the multirun, `done` of whose launched `jobs` ended."""
    done, total = done + jobs[0].before, jobs[0].total or len(jobs)
    sys.stderr.write(f"interrupted: {done} of {total} jobs are done; the same command continues\n")


def differing(jobs: Sequence[Sequence[str]], known: Collection[str] = ()) -> list[str]:
    """Return each job's overrides as text, without those that all jobs share.

    Args:
        jobs: the overrides of each job.
        known: overrides that jobs of other batches share, too.
    """
    shared = set(known)
    if not known and len(jobs) > 1:
        shared = set(jobs[0]).intersection(*jobs[1:])
    return [" ".join(o for o in job if o not in shared) or "the experiment" for job in jobs]


def finish(outcomes: Sequence[Outcome], directory: Path, metric: Any) -> int:
    """Write summary.csv, summary.md and figures of all jobs, and print a list of the jobs.

    Args:
        outcomes: the outcomes of all jobs of the multirun.
        directory: where the summary goes.
        metric: the name of what their values are, or a list of names.

    Returns:
        Exit status: 1 if a job has failed, else 0.
    """
    from seqrun.report import write_summary  # imported late, as drawing is slow to import

    metrics = [metric] if isinstance(metric, str) else list(metric)
    places = list(dict.fromkeys(o.directory for o in outcomes if (o.directory / FILE).exists()))
    if places:
        write_summary(places, directory, metrics[0])
    names = differing([o.overrides for o in outcomes])
    label = ", ".join(metric_label(name) for name in metrics)
    width, wide = max(map(len, names)), len(label)
    lines = [f"{'job':{width}}  {'status':9}  {label}  directory"]
    for name, outcome in zip(names, outcomes, strict=True):
        value, status = _shown(outcome.value), outcome.status
        lines.append(f"{name:{width}}  {status:9}  {value:>{wide}}  {outcome.directory.name}")
    for name, outcome in zip(names, outcomes, strict=True):
        if outcome.status == "failed":
            lines.append(f"failed: {name}: {outcome.error} (in {outcome.directory})")
    number = Counter(outcome.status for outcome in outcomes)
    count = f"{number['completed']} of {len(outcomes)} jobs completed"
    if number["diverged"]:
        count += f", {number['diverged']} diverged"
    if number["failed"]:
        count += f", {number['failed']} failed: the same command tries them again"
    lines.append(f"{count}; {_shortest(directory / 'summary.md') if places else 'no summary'}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if number["failed"] else 0


def _shortest(path: Path) -> str:
    """Return the path, relative to the current directory if it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

"""A multirun as data: its jobs, how each ended, and the summary of all."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrun.config.experiment import Experiment
from seqrun.evaluation.text import percent
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
    """

    number: int
    name: str
    overrides: tuple[str, ...]
    experiment: Experiment
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

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
        status: "completed" or "failed".
        value: its `optimized_metric`; None if it failed.
        error: why it failed, in one line.
        was_done: whether it had been completed before.
        seconds: how long it took this time.
    """

    overrides: tuple[str, ...]
    directory: Path
    status: str
    value: float | None = None
    error: str | None = None
    was_done: bool = False
    seconds: float = 0.0


def progress(job: SweepJob, outcome: Outcome, place: int, total: int) -> None:
    """Report on stderr how a job ended; stdout is for results."""
    shown = percent(outcome.value, unit=" %", undefined="-")
    if outcome.was_done:
        ending = f"completed before, {shown}"
    elif outcome.status == "completed":
        ending = f"completed, {shown}, {outcome.seconds:.1f} s"
    else:
        ending = f"failed: {outcome.error}"
    sys.stderr.write(f"[{place}/{total}] {job.name}: {ending}\n")


def stopped(done: int, total: int) -> None:
    """Report on stderr that a signal ended the multirun."""
    sys.stderr.write(f"interrupted: {done} of {total} jobs are done; the same command continues\n")


def differing(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return each job's overrides as text, without those that all jobs share."""
    shared = set(jobs[0]).intersection(*jobs[1:]) if len(jobs) > 1 else set()
    return [" ".join(o for o in job if o not in shared) or "the experiment" for job in jobs]


def finish(outcomes: Sequence[Outcome], directory: Path) -> int:
    """Write summary.csv, summary.md and figures of all jobs, and print a list of the jobs.

    Args:
        outcomes: the outcomes of all jobs of the multirun.
        directory: where the summary goes.

    Returns:
        Exit status: 0 if every job is completed, else 1.
    """
    from seqrun.report import write_summary  # imported late, as drawing is slow to import

    places = list(dict.fromkeys(o.directory for o in outcomes if (o.directory / FILE).exists()))
    if places:
        write_summary(places, directory)
    failed = [o for o in outcomes if o.status == "failed"]
    names = differing([o.overrides for o in outcomes])
    width = max(map(len, names))
    lines = [f"\n{'job':{width}}  {'status':9}  average accuracy  directory"]
    for name, outcome in zip(names, outcomes, strict=True):
        value = percent(outcome.value, unit=" %", undefined="-")
        lines.append(f"{name:{width}}  {outcome.status:9}  {value:>16}  {outcome.directory.name}")
    for name, outcome in zip(names, outcomes, strict=True):
        if outcome.status == "failed":
            lines.append(f"failed: {name}: {outcome.error} (in {outcome.directory})")
    count = f"{len(outcomes) - len(failed)} of {len(outcomes)} jobs completed"
    if failed:
        count += f", {len(failed)} failed: the same command tries them again"
    lines.append(f"{count}; {_shortest(directory / 'summary.md') if places else 'no summary'}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if failed else 0


def _shortest(path: Path) -> str:
    """Return the path, relative to the current directory if it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

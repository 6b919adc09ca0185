"""Sentences that all formats of a report share."""

from __future__ import annotations

from seqrun.report.records import Collection

UNITS = (
    "Mean ± half width of the 95 % confidence interval over seeds (Student's t), in percent; "
    "no interval with one seed; – = undefined."
)
PAIRED = (
    "First minus second, seed by seed over the seeds that both have: mean ± half width of the "
    "95 % t-interval of the differences, in percentage points. Not corrected for the number of "
    "comparisons."
)


def counts(collection: Collection) -> str:
    """Return a sentence with the numbers of runs and experiments found."""
    runs, experiments = collection.num_runs, len(collection.experiments)
    of = f"of {experiments} experiment{'s' * (experiments != 1)}"
    parts = [f"{runs} completed run{'s' * (runs != 1)} {of}"]
    for status in ("failed", "interrupted", "running"):
        number = sum(entry.status == status for entry in collection.unfinished)
        if number:
            parts.append(f"{number} {status}")
    return ", ".join(parts) + "."


def left_out(collection: Collection) -> dict[str, list[str]]:
    """Return heading -> lines about what was found but is not in the tables."""
    older = "Older runs of the same experiment and seed, left out"
    return {
        "Records that cannot be read": collection.unreadable,
        older: list(map(str, collection.replaced)),
    }

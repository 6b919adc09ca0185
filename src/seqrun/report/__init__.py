"""Many runs in one picture: tables, figures and one HTML page from run directories.

`write_report` makes all of it (`python -m seqrun.report DIR...`); `write_summary` makes the short
form that a multirun ends in.
"""

from seqrun.report.records import Collection, ExperimentRuns, collect, find
from seqrun.report.writing import summarise_directory, write_report, write_summary

__all__ = [
    "Collection",
    "ExperimentRuns",
    "collect",
    "find",
    "summarise_directory",
    "write_report",
    "write_summary",
]

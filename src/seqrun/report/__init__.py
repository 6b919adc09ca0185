"""Reports over many runs: tables, figures and one HTML page from run directories.

`write_report` writes everything (`python -m seqrun.report DIR...`); `write_summary` writes the
short form at the end of a multirun.
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

"""Make a report: `python -m seqrun.report DIR... [--out DIR]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from seqrun.checks import ConfigError
from seqrun.report import write_report
from seqrun.report.words import counts


def main(argv: Sequence[str]) -> int:
    """Write the report that the command line asks for.

    Returns:
        Exit status: 0; 1 if there is nothing to report or a record could not be read; 2 for wrong
        arguments.
    """
    parser = argparse.ArgumentParser(
        prog="python -m seqrun.report",
        description="Tables, figures and one HTML page from run directories.",
    )
    parser.add_argument(
        "directories",
        metavar="DIR",
        nargs="+",
        type=Path,
        help="run directory, or a directory with runs at any depth",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("report"), help="default: ./report"
    )
    given = parser.parse_args(argv)
    try:
        collection = write_report(given.directories, given.out)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for message in collection.unreadable:
        sys.stderr.write(f"skipped: {message}\n")
    sys.stdout.write(f"{counts(collection)}\n{given.out / 'index.html'}\n")
    return 1 if collection.unreadable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

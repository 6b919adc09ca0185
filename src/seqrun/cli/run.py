"""The command `seqrun`, which is `python run.py` too: run an experiment, or a multirun of them."""

from __future__ import annotations

import atexit
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERBS = {
    "list": "seqrun.cli.listing",
    "explain": "seqrun.cli.explain",
    "report": "seqrun.report.__main__",
    "reproduce": "seqrun.reproductions.__main__",
}
"""First word of a command line that runs no experiment -> the module whose `main` it calls."""


def main(cfg: DictConfig) -> float | list[float] | None:
    """Run one job."""
    from seqrun.runs import runner  # imported here, so that --help need not wait for it

    return runner.run(cfg)


def command() -> int:
    """Check the command line, then let Hydra run it; return the exit status."""
    if sys.argv[1:2] and sys.argv[1] in VERBS:
        return _run_verb(*sys.argv[1:])
    if {"-h", "--help"} & set(sys.argv):
        from seqrun.cli import listing

        sys.stdout.write(listing.usage())
        return 0
    import hydra

    from seqrun import CONF

    if {"-sc", "--shell-completion"} & set(sys.argv):
        from seqrun.cli import completion

        shells = [word.partition("=")[2] for word in sys.argv if word.startswith("query=")]
        if shells and completion.answer(shells[0]):
            return 0
    from seqrun.cli import preflight
    from seqrun.config.compose import with_defaults

    dry_run = "--dry-run" in sys.argv[1:]  # seqrun's own flag, which Hydra must not see
    argv = with_defaults([argument for argument in sys.argv[1:] if argument != "--dry-run"])
    sys.argv[1:] = argv
    status = preflight.main(argv, CONF, dry_run=dry_run)
    if not status and not dry_run:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(main)()
    return status


def _run_verb(name: str, *argv: str) -> int:
    try:
        status = import_module(VERBS[name]).main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    return status


def entry() -> None:
    """Run the command line and exit with its status."""
    status = 1  # if an error ends the process with a traceback
    try:
        from seqrun.runs.exit import exit_process

        atexit.register(lambda: exit_process(status))
        status = command()
    except KeyboardInterrupt:  # before the run began; a run says so itself
        sys.stderr.write("interrupted before anything was run\n")
        status = 130
    except SystemExit as error:  # from a run that failed, or from Hydra
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    sys.exit(status)


if __name__ == "__main__":
    entry()

"""Run an experiment, or a multirun of them: `python run.py --help`."""

from __future__ import annotations

import atexit
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from seqrun.runs.exit import exit_process


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one job."""
    from seqrun.runs import runner  # imported here, so that --help need not wait for it

    return runner.run(cfg)


def command() -> int:
    """Check the command line, then let Hydra run it; return the exit status."""
    conf = Path(__file__).parent / "conf"
    if {"-h", "--help"} & set(sys.argv):
        from seqrun.cli import listing

        sys.stdout.write(listing.usage(conf))
        return 0
    from seqrun.cli import preflight

    dry_run = "--dry-run" in sys.argv[1:]  # seqrun's own flag, which Hydra must not see
    argv = [argument for argument in sys.argv[1:] if argument != "--dry-run"]
    status = preflight.main(argv, conf, dry_run=dry_run)
    if not status and not dry_run:
        main()
    return status


if __name__ == "__main__":
    status = 1  # if an error ends the process with a traceback
    atexit.register(lambda: exit_process(status))
    try:
        status = command()
    except KeyboardInterrupt:  # before the run began; a run sets its own exit status
        status = 130
    except SystemExit as error:  # from a run that failed, or from Hydra
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    sys.exit(status)

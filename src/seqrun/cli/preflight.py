"""Check a command before Hydra touches the disk.

Every experiment that the command describes is composed, checked and built without data; then its
data are looked for. The first error ends the command with one message.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqrun.algorithms.base import BaseAlgorithm
from seqrun.checks import BAD_INPUT, ConfigError, writable
from seqrun.cli import points
from seqrun.cli.dry_run import show
from seqrun.cli.job import Job
from seqrun.config import build
from seqrun.config.compose import (
    FILES,
    check_yaml,
    composed,
    composing,
    default_lists,
    hydra_config,
    line_of,
    may_choose_file,
    options_of,
    parse,
    reason_of,
    register,
    with_defaults,
)
from seqrun.config.schema import GROUPS
from seqrun.config.secrets import without_secrets
from seqrun.config.trust import FILE_GROUPS, check_files, check_search_path
from seqrun.records.locks import refuse_locked
from seqrun.records.results import RecordError
from seqrun.runs.directory import is_done, set_aside
from seqrun.sweeps.validation import held_out, held_out_by_file, of_job

NONE = re.compile(r"='?(None|none|nil)'?: (no such|must)")
"""Matches a message about a value that was probably meant to be null."""
SEARCH = "hydra_plugins.seqrun.search.OptunaSweeper"


def main(argv: Sequence[str], config_dir: str | Path, *, dry_run: bool = False) -> int:
    """Check the command line; return 0, or write one message to stderr and return BAD_INPUT.

    Args:
        argv: the arguments of run.py.
        config_dir: the directory conf/.
        dry_run: whether to print the jobs and run nothing.
    """
    try:
        jobs = check(argv, config_dir)
        if dry_run:
            show(jobs)
        elif len(jobs) == 1 and jobs[0].is_alone:  # before Hydra writes there
            directory = jobs[0].directory
            assert directory is not None
            refuse_locked(directory)
            if jobs[0].config["resume"] == "never":
                set_aside(directory)
    except (ConfigError, RecordError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        remedy = "; resume=never moves it aside" if isinstance(error, RecordError) else ""
        if NONE.search(str(error)):
            remedy = "; what Python calls None is null here"
        sys.stderr.write(without_secrets(f"error: {error}{remedy}\n"))
        return BAD_INPUT
    return 0


def check(argv: Sequence[str], config_dir: str | Path) -> list[Job]:
    """Return the checked jobs of the command line; [] for a command that only shows something.

    Raises:
        ConfigError: the first error found.
        RecordError: a run directory has a record that cannot be read.
    """
    register()
    args, unknown = get_args_parser().parse_known_args(list(argv))
    if unknown:
        raise ConfigError(f"{' '.join(unknown)}: unknown flag, or a flag after an override")
    if args.help or args.hydra_help or args.shell_completion or args.experimental_rerun:
        return []
    if args.multirun and (args.cfg or args.info):
        raise ConfigError(
            "--multirun: must not be used with --cfg or --info, which show one experiment; "
            "--dry-run shows the jobs"
        )
    overrides = with_defaults(args.overrides)
    if args.config_dir:
        if not os.path.isdir(args.config_dir):
            raise ConfigError(f"--config-dir={args.config_dir}: must be a directory")
        check_yaml(Path(args.config_dir), (*GROUPS, *FILES, "hydra"))
    directory = os.path.abspath(args.config_path or config_dir)
    if any(group in override for override in overrides for group in FILE_GROUPS):
        check_yaml(Path(directory), FILE_GROUPS)
    name = args.config_name or "config"
    with composing(directory, args.config_dir):
        check_search_path(name)
        if args.cfg or args.info:
            parsed = parse(overrides)
            _refuse_empty_groups(parsed)
            composed(name, [line_of(o) for o in parsed if not o.is_sweep_override()])
            return []
        found = list(_jobs(name, overrides, multirun=args.multirun))
    jobs = [job for job, _ in found]
    for job in jobs:  # data last, as looking for them takes longest
        _, first = found.pop(0)  # drop it at once: it may hold data that the next does not need
        if job.directory is None or not is_done(job.directory, job.experiment):
            build.check_data(job.experiment, first)
    return jobs


def _jobs(
    name: str, overrides: list[str], *, multirun: bool
) -> Iterator[tuple[Job, BaseAlgorithm]]:
    """Yield every job of the command, and the algorithm of its first seed."""
    parsed = parse(overrides)
    fixed = [line_of(o) for o in parsed if not o.is_sweep_override()]
    _refuse_empty_groups(parsed)
    base = composed(name, fixed)
    check_files(base, name, fixed)
    if not multirun and base.hydra.mode != RunMode.MULTIRUN:
        points.refuse_sweep(parsed)
        yield _single_job(base)
        return
    if not OmegaConf.is_dict(base.hydra.sweeper):
        raise ConfigError(f"hydra.sweeper={base.hydra.sweeper}: must be a node")
    points.check_plugins(base)
    seen: dict[tuple[str, Path], str] = {}
    params = OmegaConf.select(base, "hydra.sweeper.params") or {}
    keys = [*params, *(o.get_key_element() for o in parsed)]
    of_kind = held_out if base.hydra.sweeper._target_ == SEARCH else held_out_by_file
    fixed += [f"{key}={value}" for key, value in of_kind(base, keys).items()]
    grid = str(base.hydra.sweeper._target_).endswith(("BasicSweeper", "GridSweeper"))
    for point in [] if grid else points.choices(parsed, base):
        check_files(composed(name, given := [*fixed, *point]), name, given)
    for point in points.grid_points(parsed, base, grid=grid):
        cfg = composed(name, given := [*fixed, *point])
        if any(may_choose_file(o.split("=")[0]) for o in point):
            if grid:
                check_files(cfg, name, given)
            if own := of_job(cfg, given, keys, grid=of_kind is held_out_by_file):
                cfg = composed(name, [*given, *own])
        experiment, first = build.checked_experiment(cfg)
        label = " ".join(point) or "the experiment"
        directory = _directory(cfg)
        if grid and directory is not None:
            if twin := seen.get((experiment.hash, directory)):
                several = "; one run with several loggers is logger=[a,b]" * ("logger=" in label)
                raise ConfigError(
                    f"{label}: the same experiment as {twin} of this multirun{several}"
                )
            seen[experiment.hash, directory] = label
        trials = None if grid else OmegaConf.select(base, "hydra.sweeper.n_trials")
        yield Job(experiment, directory, tuple(point), trials), first


def _single_job(cfg: DictConfig) -> tuple[Job, BaseAlgorithm]:
    """Return the job of a command without -m, checked, and the algorithm of its first seed."""
    experiment, first = build.checked_experiment(cfg)
    try:
        with hydra_config(cfg):
            directory = str(cfg.hydra.run.dir)
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.run.dir: {reason_of(error)}") from None
    written = str(OmegaConf.to_container(cfg.hydra.run))
    if "oc.env" in written and without_secrets(directory) != directory:
        raise ConfigError("hydra.run.dir: must not show what a secret variable holds")
    if not directory.strip():
        raise ConfigError("hydra.run.dir=: must be a directory")
    writable("hydra.run.dir", directory)
    return Job(experiment, Path(directory).absolute(), is_alone=True), first


def _directory(cfg: DictConfig) -> Path | None:
    """Return a multirun job's directory; None if it depends on values set by the launcher."""
    try:
        with hydra_config(cfg):
            return Path(cfg.hydra.sweep.dir, str(cfg.hydra.sweep.subdir)).absolute()
    except (OmegaConfBaseException, TypeError):
        return None


def _refuse_empty_groups(parsed: Sequence[Override]) -> None:
    """Raise ConfigError if a group is given no option, or a value that cannot name one."""
    for override in parsed:
        key = override.get_key_element().lstrip("+~")
        if key.split("@")[0] in FILES and _names_lists(override):
            raise ConfigError(f"{line_of(override)}: must be one file, not a list")
        if override.is_sweep_override():
            continue
        if not override.is_delete() and isinstance(override.value(), (str, QuotedString, list)):
            continue
        if key in GROUPS:
            several = ", or a list of them" if key in default_lists() else ""
            allowed = ", ".join(options_of(key))
            raise ConfigError(f"{line_of(override)}: must be one of {allowed}{several}")


def _names_lists(override: Override) -> bool:
    """Return True if the value, or one of several values, is a list."""
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    return any(isinstance(each, list) for each in values)

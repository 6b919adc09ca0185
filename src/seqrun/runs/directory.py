"""Run directories: find out whether one holds a completed run, and move one aside."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqrun import callbacks, loggers
from seqrun.checks import ConfigError
from seqrun.config.experiment import Experiment
from seqrun.config.hash import config_hash, differences, read_config
from seqrun.config.secrets import without_secrets
from seqrun.records import checkpoint
from seqrun.records.locks import LOCK_FILE, refuse_locked
from seqrun.records.results import FILE, MATRIX_FILE, Results

CONFIG_FILE = "config.yaml"
PRODUCTS = (
    FILE,
    CONFIG_FILE,
    MATRIX_FILE,
    checkpoint.FOLDER,
    "seeds",
    *sorted(
        {
            product
            for module in (callbacks, loggers)
            for name in module.__all__
            for product in getattr(getattr(module, name), "products", ())
        }
    ),
)
"""Files and folders that a run leaves in its directory, besides Hydra's record and the lock."""
CONFIG_KEYS = ("algo", "benchmark", "backend")
"""Keys by which the config.yaml of a run is recognised."""


def is_done(directory: Path, experiment: Experiment | Mapping[str, Any]) -> bool:
    """Return True if `directory` holds the completed run of an experiment.

    Raises:
        ConfigError: it holds another experiment, or a run from before this one's numbers changed.
        RecordError: its record cannot be read.
    """
    experiment = Experiment.of(experiment)
    config = experiment.config
    if config["resume"] == "never":
        _check_movable(directory)
        return False
    if not (directory / FILE).exists():
        if products := _products_in(directory):
            movable = _is_run_directory(directory)
            remedy = ", or resume=never to move that one aside" if movable else ""
            raise ConfigError(
                f"hydra.run.dir={directory}: has {', '.join(products)} but no record of a run: "
                f"choose another directory{remedy}"
            )
        return False
    results = Results.read(directory)
    if results.config_hash == experiment.hash:
        return results.status == "completed"
    if changed := _changed_numerics(experiment, results):
        raise ConfigError(
            f"hydra.run.dir={directory}: holds this experiment as it was before its numbers "
            f'changed ({changed}, see "Numerics" in CHANGELOG.md): choose another directory, or '
            "resume=never to move that one aside"
        )
    old = read_config(directory / CONFIG_FILE)
    differing = [] if old is None else differences(old, without_secrets(config))
    what = "; ".join(differing) or "the data or the kind of device differ"
    raise ConfigError(
        f"hydra.run.dir={directory}: holds another experiment ({what}): choose another directory, "
        "or resume=never to move that one aside"
    )


def _changed_numerics(experiment: Experiment, results: Results) -> str:
    """Name the parts whose numbers changed since a record was made; "" if anything else differs."""
    before, now = results.numerics, experiment.numerics
    if before == now or results.config_hash != config_hash(experiment.config, before):
        return ""
    keys = [key for key in sorted({*before, *now}) if before.get(key, 1) != now.get(key, 1)]
    return ", ".join(f"{key}: numerics {before.get(key, 1)} -> {now.get(key, 1)}" for key in keys)


def set_aside(directory: Path) -> None:
    """Rename a run directory to <name>.1, .2, ...; both the old and the new keep Hydra's record.

    Raises:
        ConfigError: it has files of a run but is no run directory, or it must not be moved.
    """
    _check_movable(directory)
    if not _products_in(directory):
        return
    refuse_locked(directory)
    number = 1
    while (aside := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(aside)
    if (aside / ".hydra").is_dir():
        shutil.copytree(aside / ".hydra", directory / ".hydra")


def _products_in(directory: Path) -> list[str]:
    return [name for name in PRODUCTS if (directory / name).exists()]


def _check_movable(directory: Path) -> None:
    """Raise ConfigError if `directory` has files of a run but must not be moved aside."""
    products = _products_in(directory)
    if not products:
        return
    if not _is_run_directory(directory):
        raise ConfigError(
            f"hydra.run.dir={directory}: has {', '.join(products)} but no record of a run, so it "
            "is not moved aside: choose another directory"
        )
    here = Path.cwd().resolve()
    if directory.resolve() in (here, *here.parents):
        raise ConfigError(
            f"hydra.run.dir={directory}: must not be the current directory or a parent of it with "
            "resume=never, which moves it aside"
        )


def _is_run_directory(directory: Path) -> bool:
    """Return True if it has a run's record or checkpoints, and its lock or configuration too."""
    left = (directory / FILE).exists() or (directory / checkpoint.FOLDER).is_dir()
    return left and ((directory / LOCK_FILE).exists() or _has_config(directory))


def _has_config(directory: Path) -> bool:
    config = read_config(directory / CONFIG_FILE)
    return config is not None and all(key in config for key in CONFIG_KEYS)

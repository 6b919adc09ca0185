"""The data that a search selects on: held-out training data, unless configured otherwise."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from seqrun.callbacks import BaseCallback, EarlyStoppingCallback
from seqrun.config.targets import TARGET, find_target

KEY = "benchmark.validation_fraction"
HELD_OUT = 0.1
MEASURED_ON = re.compile(r"\+*callbacks\.[^.]+\.measured_on")
"""The key by which a callback that watches held-out data lets test data be measured, or not."""


def held_out(cfg: Any, keys: Iterable[str]) -> dict[str, str]:
    """Return the overrides that keep a search's trials from being measured on the test data.

    Args:
        cfg: the composed experiment, with Hydra's node.
        keys: the keys that the command and the search set.

    Returns:
        key -> value: the fraction to hold out, unless the command, the file of `sweeps=` or the
        benchmark sets it; and `measured_on` of early stopping, unless the command sets it.
    """
    given = [key.lstrip("+~") for key in keys]
    overrides = {}
    is_set = KEY in given or _in_sweeps_file(cfg)
    if not is_set and not cfg.benchmark.get("validation_fraction"):
        is_known = "validation_fraction" in cfg.benchmark
        overrides[KEY if is_known else f"+{KEY}"] = str(HELD_OUT)
    for name, node in (cfg.get("callbacks") or {}).items():
        key = f"callbacks.{name}.measured_on"
        if key not in given and _watches_held_out(f"callbacks.{name}", node, cfg.allow_targets):
            overrides[f"++{key}"] = "validation"
    return overrides


def held_out_by_file(cfg: Any, keys: Iterable[str]) -> dict[str, str]:
    """Return the same for a grid: {} unless its file of `sweeps=` holds data out."""
    return held_out(cfg, keys) if _in_sweeps_file(cfg) else {}


def of_job(cfg: Any, given: Iterable[str], keys: Iterable[str], *, grid: bool) -> list[str]:
    """Return further overrides of one job, whose own choice of callbacks may be early stopping.

    Args:
        cfg: the job's composed experiment, with Hydra's node.
        given: the overrides that it was composed from, with those of the whole search.
        keys: as in `held_out`.
        grid: whether the rule is that of grids.
    """
    known = {override.partition("=")[0] for override in given}
    found = (held_out_by_file if grid else held_out)(cfg, keys)
    return [f"{k}={v}" for k, v in found.items() if MEASURED_ON.fullmatch(k) and k not in known]


def _watches_held_out(key: str, node: Any, allowed: Iterable[str]) -> bool:
    """Return whether a callback's node is early stopping on held-out data."""
    if not node or TARGET not in node or node.get("split", "validation") != "validation":
        return False
    found = find_target(key, node[TARGET], BaseCallback, [*allowed])
    return isinstance(found, type) and issubclass(found, EarlyStoppingCallback)


def command(cfg: Any, chosen: dict[str, Any]) -> tuple[str, bool]:
    """Return the command that measures the best trial on the test data.

    Args:
        cfg: the composed experiment of the search.
        chosen: key -> value of all overrides of the best trial.

    Returns:
        The command, and whether the search selected on other data than the test data.
    """
    fraction = next((v for k, v in chosen.items() if k.lstrip("+") == KEY), None)
    if fraction is None:
        fraction = cfg.benchmark.get("validation_fraction") or 0
    overrides = {k: v for k, v in chosen.items() if k != "sweeps"}
    measured_on = [v for k, v in chosen.items() if MEASURED_ON.fullmatch(k)]
    selected_on_other_data = float(fraction) > 0 and "test" not in measured_on
    if selected_on_other_data:
        overrides = {
            k: v
            for k, v in overrides.items()
            if k.lstrip("+") != KEY and not MEASURED_ON.fullmatch(k)
        }
        # Early stopping goes on watching what is held out.
        kept = fraction if measured_on else "0.0"
        overrides[KEY if "validation_fraction" in cfg.benchmark else f"+{KEY}"] = kept
    words = " ".join(shlex.quote(f"{key}={value}") for key, value in overrides.items())
    sources = cfg.hydra.runtime.config_sources if "hydra" in cfg else ()
    own = [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
    return " ".join(["python run.py", *map(shlex.quote, own), words]), selected_on_other_data


def _in_sweeps_file(cfg: Any) -> bool:
    """Return True if the chosen file of sweeps/ sets the key, to whatever value."""
    choice = cfg.hydra.runtime.choices.get("sweeps")
    for source in cfg.hydra.runtime.config_sources if choice else ():
        path = Path(source.path, "sweeps", f"{choice}.yaml")
        if source.schema == "file" and path.is_file():
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            return "validation_fraction" in (content.get("benchmark") or {})
    return False

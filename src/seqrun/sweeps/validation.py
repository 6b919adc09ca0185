"""The data that a search selects on: held-out training data, unless configured otherwise."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

KEY = "benchmark.validation_fraction"
HELD_OUT = 0.1


def held_out(cfg: Any, keys: Iterable[str]) -> dict[str, str]:
    """Return the override that keeps a search's trials from being measured on the test data.

    Args:
        cfg: the composed experiment, with Hydra's node.
        keys: the keys that the command and the search set.

    Returns:
        {key: value}, or {} if the command, the file of `sweeps=` or the benchmark sets the key.
    """
    is_set = any(key.lstrip("+~") == KEY for key in keys) or _in_sweeps_file(cfg)
    if is_set or cfg.benchmark.get("validation_fraction"):
        return {}
    is_known = "validation_fraction" in cfg.benchmark
    return {KEY if is_known else f"+{KEY}": str(HELD_OUT)}


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
    selected_on_other_data = float(fraction) > 0
    if selected_on_other_data:
        overrides = {k: v for k, v in overrides.items() if k.lstrip("+") != KEY}
        overrides[KEY if "validation_fraction" in cfg.benchmark else f"+{KEY}"] = "0.0"
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

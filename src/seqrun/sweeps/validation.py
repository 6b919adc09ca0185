"""What a search selects on: training data that are held out, unless it is told otherwise."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

KEY = "benchmark.validation_fraction"
HELD_OUT = 0.1


def held_out(cfg: Any, keys: Iterable[str]) -> dict[str, str]:
    """Return what a search adds to its trials so that they are not measured on the test data.

    Args:
        cfg: the composed experiment, with Hydra's node.
        keys: what the command and the search itself set.

    Returns:
        {key: value}, or {} if the command, the file of `sweeps=` or the benchmark says it.
    """
    said = any(key.lstrip("+~") == KEY for key in keys) or _in_sweeps_file(cfg)
    if said or cfg.benchmark.get("validation_fraction"):
        return {}
    is_known = "validation_fraction" in cfg.benchmark
    return {KEY if is_known else f"+{KEY}": str(HELD_OUT)}


def command(cfg: Any, chosen: dict[str, Any]) -> tuple[str, bool]:
    """Return what measures the best trial on the test data, and whether no trial has been.

    Args:
        cfg: the composed experiment of the search.
        chosen: key -> value of all that the best trial was told.
    """
    fraction = next((v for k, v in chosen.items() if k.lstrip("+") == KEY), None)
    if fraction is None:
        fraction = cfg.benchmark.get("validation_fraction") or 0
    told = {k: v for k, v in chosen.items() if k != "sweeps"}
    selected_on_other_data = float(fraction) > 0
    if selected_on_other_data:
        told = {k: v for k, v in told.items() if k.lstrip("+") != KEY}
        told[KEY if "validation_fraction" in cfg.benchmark else f"+{KEY}"] = "0.0"
    words = " ".join(shlex.quote(f"{key}={value}") for key, value in told.items())
    sources = cfg.hydra.runtime.config_sources if "hydra" in cfg else ()
    own = [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
    return " ".join(["python run.py", *map(shlex.quote, own), words]), selected_on_other_data


def _in_sweeps_file(cfg: Any) -> bool:
    """Return whether the chosen file of sweeps/ has the key, whatever its value."""
    choice = cfg.hydra.runtime.choices.get("sweeps")
    for source in cfg.hydra.runtime.config_sources if choice else ():
        path = Path(source.path, "sweeps", f"{choice}.yaml")
        if source.schema == "file" and path.is_file():
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            return "validation_fraction" in (content.get("benchmark") or {})
    return False

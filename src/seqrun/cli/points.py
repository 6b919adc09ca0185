"""Predict the overrides of each job of a multirun before its sweeper creates the jobs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from seqrun.checks import ConfigError, first_line
from seqrun.config.compose import NEED_MULTIRUN, line_of, may_choose_file, parse
from seqrun.config.targets import trusted


def refuse_sweep(parsed: Sequence[Override]) -> None:
    """Raise ConfigError if an override has an effect only in a multirun."""
    for override in parsed:
        key, line = override.get_key_element().lstrip("+~"), line_of(override)
        if override.is_sweep_override():
            values = line.split("=", 1)[1]
            hint = f"; one run over several seeds is seed=[{values}]" if key == "seed" else ""
            raise ConfigError(f"{line}: several values need -m (python run.py -m ...){hint}")
        if any(key == k or key.startswith(f"{k}.") for k in NEED_MULTIRUN):
            raise ConfigError(f"{line}: has no effect without -m (python run.py -m ...)")


def grid_points(parsed: Sequence[Override], base: DictConfig, *, grid: bool) -> Iterator[list[str]]:
    """Yield the overrides of every job to check.

    A grid is expanded as by Hydra's basic sweeper. Others choose their own points. For them,
    each value of a key (for an interval, both ends) is checked once, with the first values of all
    other keys.
    """
    axes = _axes(parsed, base, grid=grid)
    if grid:
        yield from (list(point) for point in itertools.product(*axes))
        return
    first = [values[0] for values in axes]
    yield first
    for place, values in enumerate(axes):
        for value in values[1:]:
            yield [*first[:place], value, *first[place + 1 :]]


def choices(parsed: Sequence[Override], base: DictConfig) -> Iterator[list[str]]:
    """Yield every combination of the files that a search may choose."""
    axes = _axes(parsed, base, grid=False)
    files = [values for values in axes if may_choose_file(values[0].split("=")[0])]
    yield from (list(point) for point in itertools.product(*files))


def _axes(parsed: Sequence[Override], base: DictConfig, *, grid: bool) -> list[list[str]]:
    """Return, for every key that is swept over, the override with each of its values."""
    swept = [o for o in parsed if o.is_sweep_override()]
    given = {o.get_key_element() for o in parsed}
    params = OmegaConf.select(base, "hydra.sweeper.params") or {}
    lines = [f"{key}={value}" for key, value in params.items()]
    return [
        _values(override, grid=grid)
        for override in [*parse(lines), *swept]
        if override in swept or override.get_key_element() not in given
    ]


def _values(override: Override, *, grid: bool) -> list[str]:
    """Return the override once for each of its values."""
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        if grid:
            message = "an interval needs hydra/sweeper=search (Optuna)"
            raise ConfigError(f"{line_of(override)}: {message}")
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    values = [f"{key}={text}" for text in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(f"{line_of(override)}: matches nothing")
    return values


def check_plugins(base: DictConfig) -> None:
    """Raise ConfigError if seqrun's own launcher or sweeper refuses its arguments."""
    for key in ("launcher", "sweeper"):
        node = base.hydra[key]
        if not str(node._target_).startswith("hydra_plugins.seqrun."):
            continue
        try:
            instantiate(node, **trusted(dict(node)))
        except InstantiationException as error:
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__ from None
            raise ConfigError(f"hydra.{key}: {first_line(error.__cause__ or error)}") from None

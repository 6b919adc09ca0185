"""Optuna's distributions of what the overrides of a search give to choose from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from optuna import distributions
from optuna.distributions import BaseDistribution, CategoricalDistribution

from seqrun.checks import ConfigError


def space_of(lines: Sequence[str]) -> tuple[dict[str, BaseDistribution], dict[str, str]]:
    """Return key -> distribution of what is searched, and key -> value of what is fixed.

    A key that is given both ways is fixed by the last that is fixed.
    """
    space: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(lines)):
        key = override.get_key_element()
        if override.is_sweep_override():
            space[key] = _distribution(override)
        else:
            fixed[key] = override.get_value_element_as_str()
    return {key: chosen for key, chosen in space.items() if key not in fixed}, fixed


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        return _numbers(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep) and not value.shuffle:
        assert value.start is not None and value.stop is not None
        return _numbers(value.start, value.stop, step=value.step)
    values: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    return CategoricalDistribution(values)


def _numbers(low: float, high: float, *, log: bool = False, step: Any = None) -> BaseDistribution:
    """Return a distribution of integers if all numbers are, else one of floats."""
    whole = all(isinstance(number, int) for number in (low, high, step) if number is not None)
    if hasattr(distributions, "FloatDistribution"):  # Optuna 3
        newer: Any = distributions
        if whole:
            return newer.IntDistribution(int(low), int(high), log=log, step=step or 1)
        return newer.FloatDistribution(low, high, log=log, step=step)
    if whole and log:
        return distributions.IntLogUniformDistribution(int(low), int(high))
    if whole:
        return distributions.IntUniformDistribution(int(low), int(high), step=step or 1)
    if step is not None:
        return distributions.DiscreteUniformDistribution(low, high, step)
    return (distributions.LogUniformDistribution if log else distributions.UniformDistribution)(
        low, high
    )


def space_of_nodes(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, BaseDistribution]:
    """Return the distributions of `hydra.sweeper.search_space`, the older form of `params`."""
    space: dict[str, BaseDistribution] = {}
    for key, node in nodes.items():
        kind = getattr(node.get("type"), "name", node.get("type"))
        if kind == "categorical":
            space[key] = CategoricalDistribution(list(node["choices"]))
        elif kind in ("int", "float"):
            make = int if kind == "int" else float
            step = None if node.get("step") is None else make(node["step"])
            low, high = make(node["low"]), make(node["high"])
            space[key] = _numbers(low, high, log=bool(node.get("log")), step=step)
        else:
            where = f"hydra.sweeper.search_space.{key}.type={kind}"
            raise ConfigError(f"{where}: must be one of categorical, int, float")
    return space


def grid_of(lines: Sequence[str], keys: Collection[str]) -> dict[str, list[Any]]:
    """Return key -> all of its values, for Optuna's GridSampler.

    Args:
        lines: the overrides.
        keys: those that are searched.

    Raises:
        ConfigError: a key has no finite number of values.
    """
    grid: dict[str, list[Any]] = {}
    for override in OverridesParser.create().parse_overrides(list(lines)):
        key = override.get_key_element()
        if key not in keys or not override.is_sweep_override():
            continue
        if override.is_interval_sweep():
            raise ConfigError(
                f"{override.input_line}: must be choice(...) or range(...) with "
                "hydra/sweeper/sampler=grid"
            )
        grid[key] = list(override.sweep_iterator(transformer=Transformer.encode))
    return grid

"""Experiment: a configuration and the values derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seqrun.config.hash import config_hash, device_of, numerics_of, run_name
from seqrun.config.schema import seeds_of, with_added_keys


@dataclass(frozen=True)
class Experiment:
    """An experiment as plain resolved data.

    Derived values are computed at their first use and then kept, also when the experiment is sent
    to another process.

    Attributes:
        config: key -> value; it must not be changed.
    """

    config: Mapping[str, Any]

    @classmethod
    def of(cls, config: Experiment | Mapping[str, Any]) -> Experiment:
        """Return `config` as an Experiment; an Experiment is returned unchanged."""
        return config if isinstance(config, Experiment) else cls(with_added_keys(config))

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds to run; ConfigError if they are not distinct integers >= 0."""
        return seeds_of(self.config)

    @cached_property
    def hash(self) -> str:
        """12 hex digits that identify everything that changes the numbers."""
        return config_hash(self.config, self.numerics)

    @cached_property
    def numerics(self) -> dict[str, int]:
        """Key of a part -> its version of the numbers, for every part above version 1."""
        return numerics_of(self.config)

    @cached_property
    def name(self) -> str:
        """<algo>-<benchmark>-<hash>."""
        return run_name(self.config, self.hash)

    @cached_property
    def device(self) -> str:
        """The kind of device, "cpu" or "cuda"."""
        return device_of(self.config)

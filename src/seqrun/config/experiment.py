"""Experiment: a configuration, and what follows from it, made once and handed on."""

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

    What follows from the configuration is computed when it is first asked for, and then kept, also
    when the experiment goes to another process.

    Attributes:
        config: key -> value; it must not be changed.
    """

    config: Mapping[str, Any]

    @classmethod
    def of(cls, config: Experiment | Mapping[str, Any]) -> Experiment:
        """Return the experiment of plain data; one that is an Experiment already, as it is."""
        return config if isinstance(config, Experiment) else cls(with_added_keys(config))

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds to run; raises ConfigError if they are not distinct integers >= 0."""
        return seeds_of(self.config)

    @cached_property
    def hash(self) -> str:
        """12 hex digits of whatever changes the numbers."""
        return config_hash(self.config, self.numerics)

    @cached_property
    def numerics(self) -> dict[str, int]:
        """Key -> version of the numbers of every part whose version is above 1."""
        return numerics_of(self.config)

    @cached_property
    def name(self) -> str:
        """<algo>-<benchmark>-<hash>."""
        return run_name(self.config, self.hash)

    @cached_property
    def device(self) -> str:
        """The kind of device, "cpu" or "cuda"."""
        return device_of(self.config)

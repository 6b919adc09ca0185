"""Shell completion: Hydra's, which offers here only what a command accepts."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import CompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seqrun import CONF
from seqrun.config.compose import FILES, composing, default_lists, options_of, register
from seqrun.config.schema import GROUPS

OF_MULTIRUN = ("launcher", "sweeper")
"""Groups and keys of Hydra's that have no effect in a single run."""
NOT_TYPED = ("overrides", "runtime")
"""Keys of Hydra's that only Hydra sets."""


class Accepted:
    """Hydra's loader of configurations, without groups and keys that a command refuses.

    Args:
        loader: Hydra's.
        line: the command line so far.
    """

    def __init__(self, loader: Any, line: str) -> None:
        self.loader = loader
        words = line.split(" ")
        self.sign = words[-1][:1]
        self.is_multirun = bool({"-m", "--multirun"} & {*words})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def get_group_options(
        self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG, **_: Any
    ) -> list[str]:
        """Return the options of a group, nested ones included, or the groups within one."""
        if self.sign == "+":
            return []  # every group has its option already
        if results_filter == ObjectType.CONFIG:
            return options_of(group_name) if group_name else []
        if not group_name:
            others = [group for group in FILES if options_of(group)]
            return list(default_lists()) if self.sign == "~" else [*GROUPS, *others, "hydra"]
        if not group_name.startswith("hydra") or self.sign == "~":
            return []
        found = self.loader.get_group_options(group_name, ObjectType.GROUP)
        return [name for name in found if self.is_multirun or name not in OF_MULTIRUN]

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode
    ) -> DictConfig:
        """Return the experiment as plain data, with null for lists: they are set as a whole."""
        cfg = self.loader.load_configuration(config_name, overrides, run_mode)
        plain: Any = OmegaConf.to_container(cfg)
        for key in (*NOT_TYPED, *(() if self.is_multirun else OF_MULTIRUN)):
            plain["hydra"].pop(key)
        return OmegaConf.create(_without_lists(plain))


def _without_lists(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_lists(value) for key, value in node.items()}
    return None if isinstance(node, list) else node


def answer(shell: str) -> bool:
    """Print what may end the line in COMP_LINE; return False for a shell that is not known."""
    line = os.environ.get("COMP_LINE", "")
    name = _flag(line, "--config-name", "-cn") or "config"
    register()
    with composing(CONF, _flag(line, "--config-dir", "-cd")):
        loader: Any = Accepted(GlobalHydra.instance().config_loader(), line)
        plugins: Any = Plugins.instance().discover(CompletionPlugin)
        for plugin in plugins:
            if plugin.provides() == shell:
                plugin(loader).query(name)
                return True
    return False


def _flag(line: str, *names: str) -> str | None:
    """Return the value of a flag in a command line; None if it is not there."""
    for word, value in pairwise(line.split()):
        if word in names:
            return value
    return None

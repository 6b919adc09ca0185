"""YAML files of users and strangers, looked at before Hydra loads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from seqrun.checks import ConfigError

MOST_NODES = 100_000
"""That a file may hold with its aliases written out, as Hydra writes them out."""


def check(folder: Path, groups: Iterable[str]) -> None:
    """Raise ConfigError if a YAML file of a configuration folder cannot be loaded in safety.

    Args:
        folder: which holds files, and a folder of files for every group.
        groups: the folders to look at; others may hold anything.
    """
    paths = [*folder.glob("*.yaml"), *(p for g in groups for p in (folder / g).rglob("*.yaml"))]
    for path in sorted(paths):
        try:
            text = path.read_text(encoding="utf-8")
            if "*" in text and _size(yaml.compose(text, yaml.SafeLoader), {}) > MOST_NODES:
                raise ConfigError(f"{path}: has aliases that stand for over {MOST_NODES} values")
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is no text in UTF-8") from None
        except RecursionError:  # an alias of what it stands in is one, too
            raise ConfigError(f"{path}: is nested too deeply") from None
        except (OSError, yaml.YAMLError):
            continue  # Hydra names it if it is chosen


def _size(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for; every node is counted once."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        parts = node.value if isinstance(node, yaml.SequenceNode) else sum(node.value, ())
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]

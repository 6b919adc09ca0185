"""Canonical names of flax parameters."""

from __future__ import annotations

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array


def canonical(tree: Any) -> dict[str, Array]:
    """Return a nested dictionary of arrays as canonical name -> array."""
    return flatten_dict(tree, sep="/")


def as_tree(arrays: dict[str, Array]) -> Any:
    """Undo `canonical`."""
    return unflatten_dict(arrays, sep="/")

"""Optimizers of torch.optim and optax by name, which have no twin on the other framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from seqrun.optimizers.base import BaseOptimizer


class ForeignState(NamedTuple):
    """The state of a foreign optimizer as named arrays.

    Attributes:
        started: int32 scalar, 1 after the first step.
        values: its arrays, in dictionaries by name.
    """

    started: Any
    values: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class ForeignOptimizer(BaseOptimizer):
    """An optimizer of the framework.

    Args:
        make: makes it, with all of its arguments except parameters and learning rate.
        target: its dotted name, for messages.
    """

    make: Callable[..., Any]
    target: str

    name: ClassVar[str] = "foreign"
    hparam_names: ClassVar[tuple[str, ...]] = ("lr",)
    vectorizable: ClassVar[tuple[str, ...]] = ()
    is_compilable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = self.target  # type: ignore[misc]  # of the object, not of its class

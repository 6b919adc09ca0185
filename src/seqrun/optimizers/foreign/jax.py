"""A gradient transformation of optax, or any other function that returns one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from seqrun.checks import ConfigError, first_line
from seqrun.optimizers.foreign import ForeignOptimizer, ForeignState

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class Optimizer(ForeignOptimizer):
    """An optax.GradientTransformation, made anew at every trace with the traced learning rate.

    Raises:
        ConfigError: it refuses its arguments, or needs more than gradients and parameters.
    """

    backend: ClassVar[str] = "jax"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check({"any": jax.ShapeDtypeStruct((2, 2), jnp.float32)})

    def _make(self, lr: Any) -> optax.GradientTransformation:
        try:
            made = self.make(learning_rate=lr)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer ({self.target}): {first_line(error)}") from None
        if not isinstance(made, optax.GradientTransformation):
            raise ConfigError(
                f"optimizer._target_={self.target}: must give an optax.GradientTransformation, "
                f"not a {type(made).__name__}"
            )
        return made

    def init(self, params: Arrays) -> ForeignState:
        state = self._make(self.lr_of(1)).init(params)
        return ForeignState(jnp.zeros((), jnp.int32), _named(state))

    def _check(self, params: Any) -> None:
        """Raise ConfigError unless an update needs gradients and parameters alone."""
        made = self._make(self.lr_of(1))
        try:
            jax.eval_shape(lambda p: made.update(p, made.init(p), p), params)
        except TypeError as error:
            raise ConfigError(
                f"optimizer._target_={self.target}: needs more than gradients and parameters, such "
                f"as the loss, which is not offered: {first_line(error)}"
            ) from None

    def update(
        self, gradients: Arrays, opt_state: ForeignState, params: Arrays, hparams: dict[str, Array]
    ) -> tuple[Arrays, ForeignState]:
        made = self._make(hparams["lr"])
        tree = jax.tree.structure(jax.eval_shape(made.init, params))
        updates, state = made.update(
            gradients, jax.tree.unflatten(tree, opt_state.values.values()), params
        )
        # Parameters keep their type, whatever that of the learning rate.
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        return params, ForeignState(jnp.ones((), jnp.int32), _named(state))


def _named(state: Any) -> Arrays:
    """Return the arrays of an optax state by their path in it, in its order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {f"{place:05d}{jax.tree_util.keystr(path)}": x for place, (path, x) in enumerate(leaves)}

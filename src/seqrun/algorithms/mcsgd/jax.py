"""MC-SGD on JAX."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from seqrun.algorithms.base.jax import JaxBaseAlgorithm
from seqrun.algorithms.mcsgd import Line, MCSGDModes, MCSGDOptions, Side
from seqrun.formulas.jax import allow_classes

Arrays = dict[str, Array]


@dataclass(kw_only=True, eq=False)
class MCSGD(MCSGDOptions, JaxBaseAlgorithm):
    """Mode Connectivity SGD (Mirzadeh et al. 2021)."""

    def minimise(self, memory: Side, current: Side, line: Line) -> Arrays:
        """Return w_bar_t from `self.persistent` (w_bar_{t-1}) and `self.params` (w_hat_t)."""
        names = ("lmc_init_position", "lmc_momentum", "lmc_lr")
        scalars = {name: np.float32(getattr(self, name)) for name in names}
        w_hat = MCSGDModes(self.params, self.stats)
        args = (self.persistent.w_bar, w_hat, self.engine.mask, (memory, current), line, scalars)
        return jax.block_until_ready(self.engine.compiled("lmc", self._descend, args)(*args))

    def _descend(
        self,
        w_bar: Arrays,
        trained: MCSGDModes,
        mask: Array | None,
        sides: tuple[Side, Side],
        line: Line,
        scalars: dict[str, Array],
    ) -> Arrays:
        """Run all steps of the minimisation: a scan over steps of a scan over the line's points."""
        w_hat, stats = trained
        zeros = jax.tree.map(jnp.zeros_like, w_bar)
        points = jnp.asarray(line.positions), jnp.asarray(line.coefficients)

        def gradient_at(point: Arrays, side: Side, s: Array) -> Arrays:
            """Return the gradient of the weighted sum of cross-entropies, in eval mode."""

            def add_segment(m: Array, total: Arrays) -> Arrays:
                rows, weights = side.rows[s, m], side.weights[s, m]
                x, y, t = self.inputs(side.x[rows]), side.y[rows], side.t[rows]

                def loss(params: Arrays) -> Array:
                    logits = allow_classes(self.predict(params, stats, x), mask, t)
                    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
                    return (weights * losses).sum()

                return jax.tree.map(jnp.add, total, jax.grad(loss)(point))

            return jax.lax.fori_loop(0, side.segments, add_segment, zeros)

        def step(carry: tuple[Arrays, Arrays], s: Array) -> tuple[tuple[Arrays, Arrays], None]:
            w, velocity = carry

            def add_point(total: Arrays, point: tuple[Array, Array]) -> tuple[Arrays, None]:
                a, c = point
                for origin, side in zip((w_bar, w_hat), sides, strict=True):
                    gradient = gradient_at(between(origin, w, a), side, s)
                    total = jax.tree.map(lambda sum_, g: sum_ + c * g, total, gradient)
                return total, None

            gradient, _ = jax.lax.scan(add_point, zeros, points)
            momentum, lr = scalars["lmc_momentum"], scalars["lmc_lr"]
            velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
            return (jax.tree.map(lambda p, v: p - lr * v, w, velocity), velocity), None

        start = between(w_bar, w_hat, scalars["lmc_init_position"])
        (w, _), _ = jax.lax.scan(step, (start, zeros), jnp.arange(len(sides[0].rows)))
        return w


def between(origin: Arrays, end: Arrays, a: Array) -> Arrays:
    """Return origin + a (end - origin)."""
    return jax.tree.map(lambda o, e: o + a * (e - o), origin, end)

"""Per-sample gradient powers for JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from seqrun.formulas.layers.jax import BatchNorm, trace_layers
from seqrun.formulas.parameters.jax import as_tree

Arrays = dict[str, Array]
CHUNK = 32  # samples whose gradients are computed and held at a time, as in PyTorch
UNROLLED = 8  # samples per call with convolutions on a CPU, which unrolls the loop over samples


def per_sample_power_sum(
    module: nn.Module,
    params: Arrays,
    stats: Arrays,
    x: Array,
    losses: Callable[..., Array],
    targets: tuple[Array, ...],
    power: int,
) -> Arrays:
    """Return sum_n |d loss_n / d theta|^power by canonical name.

    Args:
        module, params, stats: the network, applied in eval mode, so that a sample's loss
            depends on that sample alone.
        x: (B, H, W, C) network inputs; on a CPU with convolutions, B should be about UNROLLED.
        losses: maps logits (B, C) and `targets` to (B,) per-sample losses.
        targets: arrays with leading axis B.
        power: 1 or 2.
    """

    def loss(params: Arrays) -> Array:
        variables = {"params": as_tree(params), "batch_stats": as_tree(stats)}
        return losses(module.apply(variables, x), *targets).sum()

    trace = trace_layers(tuple(_RULES), params, loss)
    if trace is None:
        return _by_vmap(module, params, stats, x, losses, targets, power)
    sums: Arrays = {}
    arrays = params | stats
    for path, layer in trace.layers.items():
        own = {n.rpartition("/")[2]: arrays[n] for n in arrays if n.rpartition("/")[0] == path}
        rule = _RULES[type(layer)]
        terms = rule(layer, own, trace.inputs[path], trace.deltas[path], power)
        sums |= {f"{path}/{leaf}": value for leaf, value in terms.items()}
    return {name: sums[name] for name in params}


# ---- rules: (layer, its arrays, input h, derivative delta of the output, power) -> sums by name


def _dense(layer: nn.Dense, own: Arrays, h: Array, delta: Array, power: int) -> Arrays:
    """For (B, in) and (B, out): a sample's gradient is an outer product, and so is its power."""
    d = jnp.abs(delta) ** power
    return {"kernel": (jnp.abs(h) ** power).T @ d, "bias": d.sum(0)}


def _norm(layer: BatchNorm, own: Arrays, h: Array, delta: Array, power: int) -> Arrays:
    """For (B, ..., C), with running statistics."""
    axes = tuple(range(1, h.ndim - 1))
    scaled = (h - own["mean"]) * jax.lax.rsqrt(own["var"] + layer.eps)
    each = {"scale": (delta * scaled).sum(axes), "bias": delta.sum(axes)}
    return {leaf: (jnp.abs(g) ** power).sum(0) for leaf, g in each.items()}


def _convolution(layer: nn.Conv, own: Arrays, h: Array, delta: Array, power: int) -> Arrays:
    """For (B, H, W, in) and (B, H', W', out): differentiate the layer sample by sample.

    On a CPU the loop over samples is unrolled. Convolutions in an XLA loop, and the grouped
    convolutions of vmap, were measured to be many times slower there.
    """

    def powers(h: Array, d: Array) -> Arrays:
        _, pullback = jax.vjp(lambda values: layer.apply({"params": values}, h[None]), own)
        return {leaf: jnp.abs(g) ** power for leaf, g in pullback(d[None])[0].items()}

    def unrolled(h: Array, delta: Array) -> Arrays:
        each = [powers(*sample) for sample in zip(h, delta, strict=True)]
        return jax.tree.map(lambda *g: sum(g[1:], start=g[0]), *each)

    def vmapped(h: Array, delta: Array) -> Arrays:
        return jax.tree.map(lambda g: g.sum(0), jax.vmap(powers)(h, delta))

    sums: Arrays = jax.lax.platform_dependent(h, delta, cpu=unrolled, default=vmapped)
    return sums


_RULES: dict[type, Callable[..., Arrays]] = {
    nn.Dense: _dense,
    BatchNorm: _norm,
    nn.Conv: _convolution,
}


def _by_vmap(
    module: nn.Module,
    params: Arrays,
    stats: Arrays,
    x: Array,
    losses: Callable[..., Array],
    targets: tuple[Array, ...],
    power: int,
) -> Arrays:
    def loss(values: Arrays, sample: Array, target: tuple[Array, ...]) -> Array:
        variables = {"params": as_tree(values), "batch_stats": as_tree(stats)}
        logits = module.apply(variables, sample[None])
        return losses(logits, *(t[None] for t in target)).sum()

    def block(samples: tuple) -> Arrays:
        inputs, targets = samples
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, inputs, targets)
        return jax.tree.map(lambda g: (jnp.abs(g) ** power).sum(0), each)

    def total(rows: int, samples: tuple) -> Arrays:
        head = (len(x) - 1) % rows + 1  # the first block takes the remainder
        first = block(jax.tree.map(lambda a: a[:head], samples))
        if head == len(x):
            return first
        rest = jax.tree.map(lambda a: a[head:].reshape(-1, rows, *a.shape[1:]), samples)

        def add(sums: Arrays, part: tuple) -> tuple[Arrays, None]:
            return jax.tree.map(jnp.add, sums, block(part)), None

        return jax.lax.scan(add, first, rest)[0]

    # On a CPU a loop over single samples was measured to be 2 to 5 times faster than one over
    # blocks: sums and gradient stay in cache. But convolutions are slow in a loop and use blocks.
    cpu_rows = CHUNK if any(p.ndim == 4 for p in params.values()) else 1
    return jax.lax.platform_dependent(
        (x, targets), cpu=partial(total, cpu_rows), default=partial(total, CHUNK)
    )

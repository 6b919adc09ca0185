"""Batch normalisation, and the inputs and output derivatives of layers, for JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Arrays = dict[str, Array]
_AXES = {nn.Dense: 2, nn.Conv: 4}  # number of axes of a batch of inputs


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with torch's conventions.

    Unlike flax's, it keeps the unbiased running variance, and `momentum` weights the new batch.
    """

    momentum: float = 0.1
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalise (..., C) by the batch if `train`, else by the running statistics."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            n = x.size // channels
            mean, var = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                m = self.momentum
                running_mean.value = (1 - m) * running_mean.value + m * mean
                running_var.value = (1 - m) * running_var.value + m * var * (n / (n - 1))
        return (x - mean) * jax.lax.rsqrt(var + self.eps) * scale + bias


class LayerTrace(NamedTuple):
    """What the layers of a network do in a loss over N samples, by path of the layer.

    Attributes:
        layers: flax modules, unbound.
        inputs: (N, ..., in) each.
        deltas: (N, ..., out) each, derivatives of the loss with respect to the outputs.
    """

    layers: dict[str, Any]
    inputs: Arrays
    deltas: Arrays


def trace_layers(
    kinds: tuple[type, ...], params: Arrays, loss: Callable[[Arrays], Array]
) -> LayerTrace | None:
    """Return the inputs of layers and the derivatives of a loss with respect to their outputs.

    Args:
        kinds: classes of the layers.
        params: parameters of the network, by canonical name.
        loss: maps parameters to a number by applying the network once to a batch.

    Returns:
        The trace; None unless every parameter belongs to a layer of these kinds that is applied
        exactly once, to a batch, and is used nowhere else.
    """
    layers: dict[str, Any] = {}

    def is_traced(context: Any, path: str, params: Arrays) -> bool:
        """Return whether a layer of these kinds is called with its own part of `params`."""
        is_called = context.method_name == "__call__" and type(context.module) in kinds
        own = context.module.variables.get("params", {}) if is_called else {}
        return bool(own) and all(v is params.get(f"{path}/{leaf}") for leaf, v in own.items())

    def tapped(taps: Arrays) -> tuple[Array, dict[str, tuple[list[Array], list[Array]]]]:
        """Return the loss with a tap added to each layer's output, and all inputs and outputs."""
        calls: dict[str, tuple[list[Array], list[Array]]] = {}

        def tap(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            path = "/".join(context.module.path)
            if args and is_traced(context, path, params):
                layers[path] = context.module.clone(parent=None, name=None)
                inputs, outputs = calls.setdefault(path, ([], []))
                inputs.append(args[0])
                outputs.append(output)
                output = output + taps[path] if path in taps else output
            return output

        with nn.intercept_methods(tap):
            return loss(params), calls

    shapes = jax.eval_shape(lambda: tapped({})[1])
    covered = {name for name in params if name.rpartition("/")[0] in shapes}
    applied_once = all(
        len(inputs) == 1 and inputs[0].ndim == _AXES.get(type(layers[path]), inputs[0].ndim)
        for path, (inputs, _) in shapes.items()
    )
    if not applied_once or covered != set(params):
        return None

    def without_layers(params: Arrays) -> Array:
        """Return the loss with zeros in place of each layer's output."""

        def skip(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = "/".join(context.module.path)
            if args and is_traced(context, path, params):
                return jnp.zeros_like(shapes[path][1][0])
            return call(*args, **kwargs)

        with nn.intercept_methods(skip):
            return loss(params)

    # A parameter that this program reads is used outside its layer too. The program still has all
    # other operations, even those that only lead to the input of a layer.
    program = jax.make_jaxpr(without_layers)(params).jaxpr
    used = [*program.outvars, *(v for equation in program.eqns for v in equation.invars)]
    if any(v is param for v in used for param in program.invars):
        return None

    def total(taps: Arrays) -> tuple[Array, Arrays]:
        value, calls = tapped(taps)
        return value, {path: inputs[0] for path, (inputs, _) in calls.items()}

    taps = {path: jnp.zeros_like(outputs[0]) for path, (_, outputs) in shapes.items()}
    deltas, inputs = jax.grad(total, has_aux=True)(taps)
    return LayerTrace(layers, inputs, deltas)


def dense_gradient(trace: LayerTrace) -> Arrays:
    """Return the gradient of a network of dense layers, by canonical name."""
    gradient: Arrays = {}
    for path, layer in trace.layers.items():
        h, delta = trace.inputs[path], trace.deltas[path]
        gradient[f"{path}/kernel"] = h.T @ delta
        if layer.use_bias:
            gradient[f"{path}/bias"] = delta.sum(0)
    return gradient


def dense_product(one: LayerTrace, other: LayerTrace) -> Array:
    """Return the inner product of the gradients of two traces, computing neither gradient."""
    terms = []
    for path, layer in one.layers.items():
        inputs = one.inputs[path] @ other.inputs[path].T + layer.use_bias
        terms.append((inputs * (one.deltas[path] @ other.deltas[path].T)).sum())
    return jnp.stack(terms).sum()

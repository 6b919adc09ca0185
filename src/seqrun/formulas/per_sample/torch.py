"""Per-sample gradient powers for PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from seqrun.backbones.torch import canonical_names

Tensors = dict[str, Tensor]
CHUNK = 32  # samples at a time of a call vmapped, or with convolutions: measured fastest
PATCHES = 8  # samples whose patches a convolution's rule makes at a time


def per_sample_power_sum(
    module: nn.Module,
    x: Tensor,
    losses: Callable[..., Tensor],
    targets: tuple[Tensor, ...],
    power: int,
) -> Tensors:
    """Return sum_n |d loss_n / d theta|^power by canonical name, in torch's layout.

    Args:
        module: in eval mode, so that a sample's loss depends on that sample alone.
        x: (B, H, W, C) network inputs.
        losses: maps logits (B, C) and `targets` to (B,) per-sample losses.
        targets: arrays with leading axis B.
        power: 1 or 2.
    """
    rows = CHUNK if any(isinstance(layer, nn.Conv2d) for layer in module.modules()) else len(x)
    parts = zip(x.split(rows), *(t.split(rows) for t in targets), strict=True)
    sums: Tensors = {}
    for part, *given in parts:
        for name, found in _power_sum(module, part, losses, tuple(given), power).items():
            sums[name] = sums[name] + found if name in sums else found
    return sums


def _power_sum(
    module: nn.Module,
    x: Tensor,
    losses: Callable[..., Tensor],
    targets: tuple[Tensor, ...],
    power: int,
) -> Tensors:
    taps = _Taps(module)
    with taps:
        total = losses(module(x), *targets).sum()
    if not taps.complete:
        return _by_vmap(module, x, losses, targets, power)
    deltas = torch.autograd.grad(total, taps.outputs)
    sums: Tensors = {}
    for layer, h, delta in zip(taps.layers, taps.inputs, deltas, strict=True):
        weight, bias = _RULES[type(layer)](layer, h.detach(), delta, power)
        sums[taps.name(layer, "weight")] = weight
        if layer.bias is not None:
            sums[taps.name(layer, "bias")] = bias
    return {name: sums[name] for name in taps.params}


# ---- rules: (layer, input h, derivative of the loss by the output) -> sums of weight and bias


def _linear(layer: nn.Linear, h: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Of (B, in) and (B, out): a sample's gradient is an outer product, as is its power."""
    d = delta.abs() ** power
    return d.T @ (h.abs() ** power), d.sum(0)


def _norm(layer: Any, h: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Of (B, C) or (B, C, H, W), with running statistics."""
    places = (*h.shape[:2], -1)
    centred = h.reshape(places) - layer.running_mean[:, None]
    scale = (layer.running_var + layer.eps).rsqrt() * centred.mul_(delta.reshape(places)).sum(2)
    return scale.abs().pow(power).sum(0), delta.reshape(places).sum(2).abs().pow(power).sum(0)


def _convolution(layer: nn.Conv2d, h: Tensor, delta: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Of (B, in, H, W) and (B, out, H', W'): per sample, patches times derivatives.

    Patches are few samples' at a time: small enough to stay in cache, measured fastest.
    """
    padding: Any = layer.padding
    (top, left), (height, width) = padding, layer.kernel_size
    padded = nn.functional.pad(h, (left, left, top, top)).permute(0, 2, 3, 1)
    windows = padded.unfold(1, height, layer.stride[0]).unfold(2, width, layer.stride[1])
    d = delta.flatten(2)
    total = torch.zeros_like(layer.weight)
    for start in range(0, len(h), PATCHES):
        part = slice(start, start + PATCHES)
        patches = windows[part].permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)
        each = torch.bmm(d[part], patches).abs_().pow_(power).sum(0)
        total += each.view(len(each), height, width, -1).permute(0, 3, 1, 2)
    return total, d.sum(2).abs().pow(power).sum(0)


_RULES: dict[type, Callable[..., tuple[Tensor, Tensor]]] = {
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.Conv2d: _convolution,
}
_AXES = {nn.Linear: 2, nn.BatchNorm1d: 2, nn.BatchNorm2d: 4, nn.Conv2d: 4}


class _Taps:
    """Record inputs and outputs of the layers that have a rule, during one forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.params, _ = canonical_names(module)
        self._names = {id(p): name for name, p in self.params.items()}
        self._module = module
        self.layers: list[nn.Module] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __enter__(self) -> None:
        self._handles = [
            layer.register_forward_hook(self._record)
            for layer in self._module.modules()
            if _has_rule(layer)
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.layers.append(layer)
        self.inputs.append(inputs[0])
        self.outputs.append(output)
        return output.clone()  # what follows may work in place, and the output must stay its own

    @property
    def complete(self) -> bool:
        """Whether every parameter belongs to one recorded application of a layer, to a batch."""
        seen = [id(p) for layer in self.layers for p in layer.parameters(recurse=False)]
        axes = [_AXES[type(layer)] for layer in self.layers]
        whole = [h.ndim for h in self.inputs] == axes
        return whole and len(seen) == len(set(seen)) and set(seen) == set(self._names)

    def name(self, layer: nn.Module, leaf: str) -> str:
        return self._names[id(getattr(layer, leaf))]


def _has_rule(layer: nn.Module) -> bool:
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return type(layer) in _RULES and layer.affine and layer.track_running_stats
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        return type(layer) in _RULES and plain and isinstance(layer.padding, tuple)
    return type(layer) in _RULES


def _by_vmap(
    module: nn.Module,
    x: Tensor,
    losses: Callable[..., Tensor],
    targets: tuple[Tensor, ...],
    power: int,
) -> Tensors:
    params = {name: p.detach() for name, p in module.named_parameters()}

    def loss(values: Tensors, sample: Tensor, *target: Tensor) -> Tensor:
        logits = functional_call(module, values, (sample[None],))
        return losses(logits, *(t[None] for t in target)).sum()

    each = vmap(grad(loss), in_dims=(None, 0) + (0,) * len(targets))
    sums = {name: torch.zeros_like(p) for name, p in params.items()}
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        gradients = each(params, x[part], *(t[part] for t in targets))
        for name, gradient in gradients.items():
            sums[name] += (gradient.abs() ** power).sum(0)
    canonical, _ = canonical_names(module)
    by_id = {id(p): sums[name] for name, p in module.named_parameters()}
    return {name: by_id[id(p)] for name, p in canonical.items()}

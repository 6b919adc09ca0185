"""Per-sample gradient powers for PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from seqrun.backbones.torch import canonical_names

Tensors = dict[str, Tensor]
VMAP_CHUNK = 32  # samples per vmapped call: small enough to stay in cache, measured fastest


def per_sample_power_sum(
    module: nn.Module,
    x: Tensor,
    losses: Callable[..., Tensor],
    targets: tuple[Tensor, ...],
    power: int,
    weights: Tensor | None = None,
) -> Tensors:
    """Return sum_n w_n |d loss_n / d theta|^power by canonical name, in torch's layout.

    Args:
        module: in eval mode, so that a sample's loss depends on that sample alone.
        x: (B, H, W, C) network inputs.
        losses: maps logits (B, C) and `targets` to (B,) per-sample losses.
        targets: arrays with leading axis B.
        power: 1 or 2.
        weights: (B,) non-negative; None = 1.
    """
    taps = _Taps(module)
    with taps:
        total = losses(module(x), *targets).sum()
    if not taps.complete:
        return _by_vmap(module, x, losses, targets, power, weights)
    deltas = torch.autograd.grad(total, taps.outputs)
    sums: Tensors = {}
    for layer, h, delta in zip(taps.layers, taps.inputs, deltas, strict=True):
        d = delta.abs() ** power
        if weights is not None:
            d = d * weights[:, None]
        if isinstance(layer, nn.Linear):
            sums[taps.name(layer, "weight")] = d.T @ (h.detach().abs() ** power)
        else:
            assert isinstance(layer, nn.BatchNorm1d)
            mean, var = layer.running_mean, layer.running_var
            scaled = (h.detach() - mean) * (var + layer.eps).rsqrt()
            sums[taps.name(layer, "weight")] = (d * scaled.abs() ** power).sum(0)
        if layer.bias is not None:
            sums[taps.name(layer, "bias")] = d.sum(0)
    return {name: sums[name] for name in taps.params}


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
        """Whether every parameter belongs to one recorded (B, features) application of a layer."""
        seen = [id(p) for layer in self.layers for p in layer.parameters(recurse=False)]
        flat = all(h.ndim == 2 for h in self.inputs)
        return flat and len(seen) == len(set(seen)) and set(seen) == set(self._names)

    def name(self, layer: nn.Module, leaf: str) -> str:
        return self._names[id(getattr(layer, leaf))]


def _has_rule(layer: nn.Module) -> bool:
    if type(layer) is nn.BatchNorm1d:
        return layer.affine and layer.track_running_stats
    return type(layer) is nn.Linear


def _by_vmap(
    module: nn.Module,
    x: Tensor,
    losses: Callable[..., Tensor],
    targets: tuple[Tensor, ...],
    power: int,
    weights: Tensor | None,
) -> Tensors:
    params = {name: p.detach() for name, p in module.named_parameters()}

    def loss(values: Tensors, sample: Tensor, *target: Tensor) -> Tensor:
        logits = functional_call(module, values, (sample[None],))
        return losses(logits, *(t[None] for t in target)).sum()

    each = vmap(grad(loss), in_dims=(None, 0) + (0,) * len(targets))
    weights = torch.ones(len(x), device=x.device) if weights is None else weights
    sums = {name: torch.zeros_like(p) for name, p in params.items()}
    for start in range(0, len(x), VMAP_CHUNK):
        part = slice(start, start + VMAP_CHUNK)
        gradients = each(params, x[part], *(t[part] for t in targets))
        for name, gradient in gradients.items():
            sums[name] += torch.tensordot(weights[part], gradient.abs() ** power, dims=1)
    canonical, _ = canonical_names(module)
    by_id = {id(p): sums[name] for name, p in module.named_parameters()}
    return {name: by_id[id(p)] for name, p in canonical.items()}

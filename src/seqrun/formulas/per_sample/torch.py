"""Per-sample gradient powers for PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap

from seqrun.formulas.parameters.torch import canonical_names

Tensors = dict[str, Tensor]
CHUNK = 32  # samples at a time with vmap or convolutions; measured to be fastest
PATCHES = 4  # samples whose patches a convolution's rule extracts at a time


def per_sample_power_sum(
    module: nn.Module,
    x: Tensor,
    losses: Callable[..., Tensor],
    targets: tuple[Tensor, ...],
    power: int,
) -> Tensors:
    """Return sum_n |d loss_n / d theta|^power by canonical name, in torch's layout.

    With convolutions on a CPU, each thread takes a share of the samples and a copy of the module if
    it can be copied. That is faster than sharing every operation between the threads.

    Args:
        module: in eval mode, so that a sample's loss depends on that sample alone. Only its
            parameters require gradients, no hook changes gradients, and each parameter is used
            only in its own layer.
        x: (B, H, W, C) network inputs.
        losses: maps logits (B, C) and `targets` to (B,) per-sample losses.
        targets: arrays with leading axis B.
        power: 1 or 2.
    """
    convolves = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    rows = CHUNK if convolves else len(x)
    threads = torch.get_num_threads() if convolves and x.device.type == "cpu" else 1
    copies = _copies(module, min(threads, len(x)))
    if len(copies) == 1:
        return _power_sums(module, (x, *targets), losses, power, rows)
    shares = zip(*(t.tensor_split(len(copies)) for t in (x, *targets)), strict=True)

    def share_sums(copied: nn.Module, share: tuple[Tensor, ...]) -> Tensors:
        return _power_sums(copied, share, losses, power, rows)

    pool = ThreadPoolExecutor(len(copies), initializer=torch.set_num_threads, initargs=(1,))
    try:
        with pool:
            sums, *others = pool.map(share_sums, copies, shares)
    finally:
        torch.set_num_threads(threads)  # a new thread starts with the number that was set last
    for other in others:
        for name, value in other.items():
            sums[name] += value
    return sums


def _copies(module: nn.Module, number: int) -> list[nn.Module]:
    """Return copies of a module that share its parameters, or just the module if copying fails."""
    if number == 1:
        return [module]
    shared = {id(p): p for p in module.parameters()}
    try:
        return [copy.deepcopy(module, dict(shared)) for _ in range(number)]
    except (RuntimeError, TypeError):  # the module holds a lock, or tensors of a forward pass
        return [module]


def _power_sums(
    module: nn.Module,
    samples: tuple[Tensor, ...],
    losses: Callable[..., Tensor],
    power: int,
    rows: int,
) -> Tensors:
    taps = _Taps(module, power)
    for part in zip(*(t.split(rows) for t in samples), strict=True):
        _add_powers(taps, part, losses)
    return taps.sums


def _add_powers(taps: _Taps, part: tuple[Tensor, ...], losses: Callable[..., Tensor]) -> None:
    x, *targets = part
    with taps:
        total = losses(taps.module(x.detach()), *targets).sum()
    if taps.complete:
        torch.autograd.grad(total, taps.first_edges, allow_unused=True)
    else:
        _add_by_vmap(taps, x, losses, targets)
    taps.first_edges.clear()  # breaks a cycle: they hold the graph, whose hooks hold `taps`


# ---- rules: add to the sum of the weight, given the layer's input h and its output's derivative


def _linear(layer: nn.Linear, h: Tensor, delta: Tensor, power: int, total: Tensor) -> None:
    """For (B, in) and (B, out): a sample's gradient is an outer product, and so is its power."""
    total.addmm_((delta.abs() ** power).T, h.abs() ** power)


def _norm(layer: Any, h: Tensor, delta: Tensor, power: int, total: Tensor) -> None:
    """For (B, C) or (B, C, H, W), with running statistics."""
    shape = (*h.shape[:2], -1)
    centred = h.reshape(shape) - layer.running_mean[:, None]
    scale = (layer.running_var + layer.eps).rsqrt() * centred.mul_(delta.reshape(shape)).sum(2)
    total += scale.abs().pow(power).sum(0)


def _convolution(layer: nn.Conv2d, h: Tensor, delta: Tensor, power: int, total: Tensor) -> None:
    """For (B, in, H, W) and (B, out, H', W'): per sample, patches times derivatives.

    Patches are extracted for a few samples at a time, to stay in cache, and into reused memory,
    which was measured to be fastest.
    """
    padding: Any = layer.padding
    (top, left), (height, width), (h_height, h_width) = padding, layer.kernel_size, h.shape[2:]
    sums = total.permute(0, 2, 3, 1).flatten(1)
    each = h.new_empty(PATCHES, *sums.shape)
    padded = h.new_zeros(PATCHES, h_height + 2 * top, h_width + 2 * left, h.shape[1])
    inside = padded[:, top : top + h_height, left : left + h_width]
    windows = padded.unfold(1, height, layer.stride[0]).unfold(2, width, layer.stride[1])
    windows = windows.permute(0, 1, 2, 4, 5, 3)
    patches = torch.empty_like(windows, memory_format=torch.contiguous_format)
    columns = patches.flatten(3).flatten(1, 2)
    parts = h.permute(0, 2, 3, 1).split(PATCHES), delta.flatten(2).split(PATCHES)
    for some, d in zip(*parts, strict=True):
        n = len(some)
        inside[:n] = some
        patches[:n] = windows[:n]
        for gradient in torch.bmm(d, columns[:n], out=each[:n]):
            if power == 2:
                sums.addcmul_(gradient, gradient)
            else:
                sums += gradient.abs_()


_RULES: dict[type, Callable[..., None]] = {
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.Conv2d: _convolution,
}
_AXES = {nn.Linear: 2, nn.BatchNorm1d: 2, nn.BatchNorm2d: 4, nn.Conv2d: 4}


class _Taps:
    """Record the inputs of layers with a rule, and apply the rules during the backward pass.

    A rule is applied as soon as the derivative of its layer's output is known, while both are in
    cache. A tensor's hook receives the derivative of the tensor as it was when the hook was
    registered, so later operations may work in place.
    """

    def __init__(self, module: nn.Module, power: int) -> None:
        self.module = module
        self.params, _ = canonical_names(module)
        self._names = {id(p): name for name, p in self.params.items()}
        self.power = power
        self.sums = {name: _zero_sums(p) for name, p in self.params.items()}

    def __enter__(self) -> None:
        self.first_edges: list[GradientEdge] = []
        self._layers: list[nn.Module] = []
        self._batched: list[bool] = []
        # They run before all other hooks, which may replace the layer's output.
        self._handles = [
            layer.register_forward_hook(self._record, prepend=True)
            for layer in self.module.modules()
            if _has_rule(layer)
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._layers.append(layer)
        self._batched.append(len(inputs) == 1 and inputs[0].ndim == _AXES[type(layer)])
        if not self._batched[-1]:
            return
        h = inputs[0]
        if not h.requires_grad:  # the first layer with parameters
            self.first_edges.append(get_gradient_edge(output))
        output.register_hook(lambda delta: self._apply(layer, h.detach(), delta))

    def _apply(self, layer: nn.Module, h: Tensor, delta: Tensor) -> None:
        weights = self.sums[self._names[id(layer.weight)]]
        _RULES[type(layer)](layer, h, delta, self.power, weights)
        if layer.bias is not None:
            each = delta.reshape(*delta.shape[:2], -1).sum(2)
            self.sums[self._names[id(layer.bias)]] += each.abs().pow(self.power).sum(0)

    @property
    def complete(self) -> bool:
        """Whether every parameter belongs to exactly one recorded call of a layer on a batch."""
        seen = [id(p) for layer in self._layers for p in layer.parameters(recurse=False)]
        return all(self._batched) and len(seen) == len(set(seen)) and set(seen) == set(self._names)


def _has_rule(layer: nn.Module) -> bool:
    if not isinstance(getattr(layer, "weight", None), nn.Parameter):  # as with weight_norm
        return False
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return type(layer) in _RULES and layer.affine and layer.track_running_stats
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        return type(layer) in _RULES and plain and isinstance(layer.padding, tuple)
    return type(layer) in _RULES


def _zero_sums(parameter: Tensor) -> Tensor:
    layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
    return torch.zeros_like(parameter, memory_format=layout, requires_grad=False)


def _add_by_vmap(
    taps: _Taps, x: Tensor, losses: Callable[..., Tensor], targets: Sequence[Tensor]
) -> None:
    params = {name: p.detach() for name, p in taps.module.named_parameters()}
    name_of = {id(p): name for name, p in taps.module.named_parameters()}

    def loss(values: Tensors, sample: Tensor, *target: Tensor) -> Tensor:
        logits = functional_call(taps.module, values, (sample[None],))
        return losses(logits, *(t[None] for t in target)).sum()

    each = vmap(grad(loss), in_dims=(None, 0) + (0,) * len(targets))
    for part in zip(*(t.split(CHUNK) for t in (x, *targets)), strict=True):
        gradients = each(params, *part)
        for name, parameter in taps.params.items():
            taps.sums[name] += (gradients[name_of[id(parameter)]].abs() ** taps.power).sum(0)

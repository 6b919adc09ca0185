"""Canonical names and layouts of PyTorch parameters."""

from __future__ import annotations

from torch import Tensor, nn

# type of layer -> torch's name of a parameter or statistic -> its canonical name
_LEAVES = {
    nn.Linear: {"weight": "kernel", "bias": "bias"},
    nn.Conv2d: {"weight": "kernel", "bias": "bias"},
    nn.BatchNorm1d: {"weight": "scale", "running_mean": "mean", "running_var": "var"},
    nn.BatchNorm2d: {"weight": "scale", "running_mean": "mean", "running_var": "var"},
}


def canonical_names(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Return canonical name -> live parameter, and canonical name -> live BatchNorm statistic."""
    params: dict[str, nn.Parameter] = {}
    stats: dict[str, Tensor] = {}
    for path, layer in module.named_modules():
        leaves = _LEAVES.get(type(layer), {})
        prefix = path.replace(".", "/") + "/" if path else ""
        for leaf, parameter in layer.named_parameters(recurse=False):
            params[prefix + leaves.get(leaf, leaf)] = parameter
        for leaf, buffer in layer.named_buffers(recurse=False):
            if leaf in leaves:
                stats[prefix + leaves[leaf]] = buffer
    return params, stats


def to_canonical(value: Tensor, name: str) -> Tensor:
    """Return a view of a tensor shaped as a parameter in canonical layout: (in, out), HWIO."""
    if name.endswith("kernel"):
        return value.permute(2, 3, 1, 0) if value.ndim == 4 else value.t()
    return value


def from_canonical(value: Tensor, name: str) -> Tensor:
    """Return a view of a canonical tensor in torch's layout: (out, in), OIHW."""
    if name.endswith("kernel"):
        return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.t()
    return value

"""What a CUDA graph does, on a CPU: operations are noted, and later done at the same places.

Only torch's own operations are noted, so that programs are captured that torch did not compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

WAITING = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten._linalg_check_errors.default,
)
"""What has the host wait for the device, which a captured call cannot."""
INDEXING = torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default
"""Indexing, which with a mask waits for the number of its entries."""


class Noted(TorchDispatchMode):
    """Notes every operation with the arrays that it reads and makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        """Do it, keeping what arrays were before they are changed."""
        options = options or {}
        indices = tree_leaves(args[1:]) if function in INDEXING else []
        if function in WAITING or any(getattr(i, "dtype", None) == torch.bool for i in indices):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        if function._schema.is_mutable:
            arrays = [a for a in tree_leaves((args, options)) if isinstance(a, Tensor)]
            self.before += [(a, a.detach().clone()) for a in arrays]
        results = function(*args, **options)
        self.calls.append((function, args, options, tree_flatten(results)[0]))
        return results


def capture(call: Callable[[], Any]) -> Callable[[], Any]:
    """Capture a call as a CUDA graph does: it changes nothing yet."""
    with (noted := Noted()):
        results = call()
    for array, before in reversed(noted.before):
        array.detach().copy_(before)

    def replay() -> Any:
        with torch.no_grad():
            for function, args, options, places in noted.calls:
                found = tree_flatten(function(*args, **options))[0]
                for place, value in zip(places, found, strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.detach().copy_(value)
        return results

    return replay

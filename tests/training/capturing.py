"""Imitates CUDA graphs on a CPU: records operations and replays them on the same arrays.

Only torch's own operations are recorded, so the captured programs must not be compiled.
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
"""Operations for which the host waits for the device, which is not possible during a capture."""
INDEXING = torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default
"""Indexing operations; with a mask the host waits for the number of its entries."""


class Recorder(TorchDispatchMode):
    """Records every operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        """Run the operation; save the old values of arrays that it changes in place."""
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
    """Capture a call as a CUDA graph does: its changes are undone until it is replayed."""
    with (recorder := Recorder()):
        results = call()
    for array, before in reversed(recorder.before):
        array.detach().copy_(before)

    def replay() -> Any:
        with torch.no_grad():
            for function, args, options, places in recorder.calls:
                found = tree_flatten(function(*args, **options))[0]
                for place, value in zip(places, found, strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.detach().copy_(value)
        return results

    return replay

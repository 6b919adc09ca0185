"""Training steps as compiled programs, where a compiler can be had."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch

TOGETHER = 8
"""Steps of one program: calling one takes about as long as a small step itself."""
COMPILERS = ("g++", "clang++", "c++")
SMALLEST_CAPABILITY = (7, 0)  # of a GPU that Triton, torch's compiler for it, supports


_open: list[object] = []  # those that need torch's settings, which are the process's
_settings = ExitStack()  # entered once, not around each call: that takes as long as a step


@cache
def has_compiler(device_kind: str) -> bool:
    """Return whether programs for this kind of device can be compiled here."""
    if device_kind == "cuda":
        return torch.cuda.get_device_capability() >= SMALLEST_CAPABILITY
    return any(map(shutil.which, COMPILERS))


class CompiledSteps:
    """Training steps as programs of several at a time, one program per shape of their arguments.

    The learning rate, which changes from task to task, is an argument of the program; whatever
    else is no tensor is part of it. Random numbers are those of eager execution.

    Args:
        steps: function of (reads, plan rows, optimizer state, algorithm state, hyper).

    Attributes:
        seconds: that compiling took so far.
        failure: why the steps cannot be compiled and are run as they are; None = it can.
    """

    def __init__(self, steps: Callable[..., Any]) -> None:
        """Compile nothing yet."""
        self.seconds = 0.0
        self.failure: str | None = None
        self._steps = steps
        self._program = torch.compile(steps, fullgraph=True, dynamic=False)
        self._shapes: set[Any] = set()
        self._lr: tuple[float, torch.Tensor] | None = None
        _claim_settings(self)

    def lengths(self, steps: int) -> list[int]:
        """Return how so many steps are cut into programs: by TOGETHER, and the rest singly."""
        return [TOGETHER] * (steps // TOGETHER) + [1] * (steps % TOGETHER)

    def close(self) -> None:
        """Give back torch's settings, unless others compile yet."""
        _release_settings(self)

    def __call__(self, reads: Any, row: Any, opt_state: Any, state: Any, hyper: Any) -> Any:
        """Run steps."""
        if self.failure is not None:
            return self._steps(reads, row, opt_state, state, hyper)
        if self._lr is None or self._lr[0] != hyper["lr"]:
            self._lr = hyper["lr"], torch.tensor(hyper["lr"])
        shape = tuple(batch.x.shape for batch in reads.values())
        started = time.perf_counter()
        try:
            found = self._program(reads, row, opt_state, state, {**hyper, "lr": self._lr[1]})
        except torch._dynamo.exc.TorchDynamoException as error:
            self.failure = str(error).strip().splitlines()[0]
            sys.stderr.write(f"warning: training runs uncompiled: {self.failure}\n")
            return self._steps(reads, row, opt_state, state, hyper)
        if shape not in self._shapes:
            self._shapes.add(shape)
            self.seconds += time.perf_counter() - started
        return found


def _claim_settings(owner: object) -> None:
    """Set what compiling a training step needs of torch."""
    import torch._dynamo
    import torch._inductor.config

    if not _open:
        limits: dict[str, Any] = {"recompile_limit": 4096, "accumulated_recompile_limit": 4096}
        _settings.enter_context(torch._dynamo.config.patch(trace_autograd_ops=True, **limits))
        _settings.enter_context(torch._inductor.config.patch(fallback_random=True))
    _open.append(owner)


def _release_settings(owner: object) -> None:
    """Set them back once nobody needs them."""
    _open.remove(owner)
    if not _open:
        _settings.close()

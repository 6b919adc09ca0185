"""Training steps, or the network in them, as compiled programs, where there is a compiler."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from seqrun.checks import first_line
from seqrun.training.engine.cache import VARIABLES, compilation_cache

STEPS_PER_PROGRAM = 8
"""Steps of one program: calling one takes about as long as a small step itself."""
SMALLEST_CAPABILITY = (7, 0)  # of a GPU that Triton, torch's compiler for it, supports


_open: list[object] = []  # those that need torch's settings, which are the process's
_settings = ExitStack()  # entered once, not around each call: that takes as long as a step


@cache
def has_compiler(device_kind: str) -> bool:
    """Return whether programs for this kind of device can be compiled here.

    On a CPU torch looks for what CXX names, else for g++ (on macOS for clang++).
    """
    if device_kind == "cuda":
        return torch.cuda.get_device_capability() >= SMALLEST_CAPABILITY
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError:
        return False
    return True


class Program:
    """A function of which torch compiles one program per shape of its arguments.

    Whatever is no tensor is part of the program. Random numbers are those of eager execution.

    Args:
        function: to compile.
        fullgraph: whether a function that is no single program fails.

    Attributes:
        part: of the run that is compiled, as its record names it.
        seconds: that compiling took so far.
        failure: why the function cannot be compiled and is called as it is; None = it can.
    """

    part: ClassVar[str]

    def __init__(self, function: Callable[..., Any], *, fullgraph: bool) -> None:
        """Compile nothing yet."""
        self.seconds = 0.0
        self.failure: str | None = None
        self._function = function
        self._program = torch.compile(function, fullgraph=fullgraph, dynamic=False)
        _claim_settings(self)

    def close(self) -> None:
        """Give back torch's settings, unless others compile yet."""
        _release_settings(self)

    def _call(self, args: tuple[Any, ...], plain: tuple[Any, ...]) -> Any:
        """Call the program, or the function with `plain` if it cannot be compiled."""
        if self.failure is not None:
            return self._function(*plain)
        stats = torch._dynamo.utils.counters["stats"]
        graphs, started = stats["unique_graphs"], time.perf_counter()
        try:
            with _shielded():
                found = self._program(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            if _removes_damaged(error):
                return self._call(args, plain)
            self.failure = _reason(error)
            sys.stderr.write(f"warning: training runs uncompiled: {self.failure}\n")
            return self._function(*plain)
        if stats["unique_graphs"] > graphs:
            self.seconds += time.perf_counter() - started
        return found


@contextmanager
def _shielded() -> Iterator[None]:
    """Let signals wait, of this thread and of those and the processes that it starts.

    Ctrl-C goes to g++ as well, and what it leaves half written would be taken for a program.
    Windows cannot do this.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _removes_damaged(error: Exception) -> bool:
    """Remove the kept program that could not be loaded, as after a kill, if that was the error."""
    cause = getattr(error, "inner_exception", None)
    folder = os.environ.get(VARIABLES["torch"])
    if not isinstance(cause, ImportError) or cause.path is None or folder is None:
        return False
    path = Path(cause.path)
    if not path.is_relative_to(folder) or not path.exists():
        return False
    path.unlink()
    return True


Capture = Callable[[Callable[[], Any]], Callable[[], Any]]
"""Takes a call without arguments; what it returns does the same, its results in the same places."""
CALLS_BEFORE = 8
"""With arguments of a kind, before one is captured: a capture waits for the GPU, and takes as long
as several calls. The first one compiles, too."""


def capture_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """Capture a call's kernels in a CUDA graph, without running them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


class Captured(NamedTuple):
    """A call that can be replayed.

    Attributes:
        arrays: that it reads its arguments from.
        replay: does it again.
    """

    arrays: list[torch.Tensor]
    replay: Callable[[], Any]


class CapturedProgram:
    """A compiled program whose calls are captured in CUDA graphs and replayed.

    Starting the kernels of a small step one by one takes longer than they do. A replay reads what
    the captured call read, at the same addresses: arguments are copied there, and whatever else
    the program reads, as parameters, must lie where it did until `forget`. What is no array is
    part of the graph, as is all that the host reckons, with arrays of its own too; calls with
    arguments on several devices are not captured.

    Args:
        program: function of nested containers of arrays, which it may change.
        capture: `capture_graph`, on a GPU.

    Attributes:
        has_captured: whether a call has been, and none could not.
    """

    def __init__(self, program: Callable[..., Any], capture: Capture) -> None:
        """Capture nothing yet."""
        self.has_captured = False
        self._program = program
        self._capture: Capture | None = capture
        self._calls: Counter[Any] = Counter()
        self._captured: dict[Any, Captured] = {}

    def forget(self) -> None:
        """Drop all that was captured."""
        self._calls.clear()
        self._captured.clear()

    def __call__(self, *args: Any) -> Any:
        """Call the program, or replay a call with arguments of these shapes.

        An array that the program only changes, or leaves as it is, is returned as the replay's
        own, which later ones change again; all others are copies.
        """
        given, containers = tree_flatten(args)
        arrays = [value for value in given if isinstance(value, torch.Tensor)]
        if self._capture is None or len({a.device for a in arrays}) > 1:
            return self._program(*args)
        kind = containers, tuple((a.shape, a.stride(), a.dtype) for a in arrays)
        if kind not in self._captured:
            self._calls[kind] += 1
            if self._calls[kind] <= CALLS_BEFORE or not self._capture_call(kind, given, containers):
                return self._program(*args)
        own, replay = self._captured[kind]
        own_ids = {id(array) for array in own}

        def apart(array: torch.Tensor) -> torch.Tensor:
            return array if id(array) in own_ids else array.clone()

        moved = [pair for pair in zip(own, arrays, strict=True) if pair[0] is not pair[1]]
        if moved:
            # What lies in another's place must not be overwritten before it is copied.
            values = [a.clone() if id(a) in own_ids else a for _, a in moved]
            torch._foreach_copy_([place for place, _ in moved], values)
        return tree_map_only(torch.Tensor, apart, replay())

    def _capture_call(self, kind: Any, given: list[Any], containers: Any) -> bool:
        """Capture a call with arguments of this kind, and return whether that could be done."""
        assert self._capture is not None
        own = [v.clone() if isinstance(v, torch.Tensor) else v for v in given]
        try:
            replay = self._capture(lambda: self._program(*tree_unflatten(own, containers)))
        except RuntimeError as error:
            self._capture, self.has_captured = None, False
            sys.stderr.write(f"warning: training runs without CUDA graphs: {first_line(error)}\n")
            return False
        arrays = [value for value in own if isinstance(value, torch.Tensor)]
        self._captured[kind], self.has_captured = Captured(arrays, replay), True
        return True


def _reason(error: Exception) -> str:
    """Return what torch's compiler cannot do, and what it met, without its advice."""
    first, others = first_line(error), str(error).splitlines()
    marked = "Developer debug context:"
    met = next((line.partition(marked)[2].strip() for line in others if marked in line), "")
    return f"{first}: {met}" if met else first


class CompiledNetwork(Program):
    """A network's training passes, forward and backward.

    Args:
        module: the network; others than this may go on calling it uncompiled.
    """

    part: ClassVar[str] = "network"

    def __init__(self, module: torch.nn.Module) -> None:
        """Compile nothing yet."""
        super().__init__(module, fullgraph=False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs to logits."""
        return self._call((x,), (x,))


class CompiledSteps(Program):
    """Training steps as programs of several at a time.

    The scalars of `hparams` (the learning rate, an algorithm's coefficients) are arguments of the
    program, which serves other tasks and the other jobs of a grid.

    Args:
        steps: function of (batches, plan rows, optimizer state, algorithm state, hparams).
        constants: the scalars that are part of the program, which torch's fused updates want.
        device: that the steps run on.
        capture: how calls are captured for a CapturedProgram; None = they are not.
    """

    part: ClassVar[str] = "steps"

    def __init__(
        self,
        steps: Callable[..., Any],
        constants: Collection[str] = (),
        *,
        device: torch.device | None = None,
        capture: Capture | None = None,
    ) -> None:
        """Compile nothing yet."""
        super().__init__(steps, fullgraph=True)
        self._capturing = None if capture is None else CapturedProgram(self._program, capture)
        if self._capturing is not None:
            self._program = self._capturing
        self._constants, self._device = constants, device
        self._hparams: dict[str, float] = {}
        self._scalars: dict[str, float | torch.Tensor] = {}

    def lengths(self, steps: int) -> list[int]:
        """Return the lengths of the programs that run so many steps; the rest run singly."""
        whole, rest = divmod(steps, STEPS_PER_PROGRAM)
        return [STEPS_PER_PROGRAM] * whole + [1] * rest

    @property
    def has_captured(self) -> bool | None:
        """Whether a call has been captured, and none could not; None = that was not asked for."""
        return None if self._capturing is None else self._capturing.has_captured

    def end_chunk(self) -> None:
        """Forget what was captured: hooks may put arrays elsewhere that the steps read."""
        if self._capturing is not None:
            self._capturing.forget()

    def __call__(self, batches: Any, row: Any, opt_state: Any, state: Any, hparams: Any) -> Any:
        """Run steps."""
        if hparams != self._hparams:
            self._hparams = hparams
            self._scalars = {
                name: value if name in self._constants else torch.tensor(value, device=self._device)
                for name, value in hparams.items()
            }
        given = batches, row, opt_state, state
        return self._call((*given, self._scalars), (*given, hparams))


def keep_programs() -> None:
    """Have torch keep its programs where they outlast a restart, and jobs on other nodes find them.

    By itself it keeps them in the folder for temporary files, as it still does where the home
    cannot be written, or in a process that imported torch's compiler before.

    Raises:
        ConfigError: the folder that its variable says cannot be written.
    """
    folder = compilation_cache("torch")
    if folder is not None:
        os.environ[VARIABLES["torch"]] = folder


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

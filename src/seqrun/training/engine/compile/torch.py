"""Compile training steps, or only the network, with torch.compile."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from seqrun.checks import first_line
from seqrun.training.engine.cache import VARIABLES, compilation_cache, compiling

STEPS_PER_PROGRAM = 8
"""Steps in one program. Calling a program takes about as long as a small step."""
MIN_CAPABILITY = (7, 0)  # of a GPU that Triton supports

_open_programs: list[Program] = []  # they need options of torch that are global
_options = ExitStack()  # entered once, since entering takes as long as a step


@cache
def has_compiler(device_kind: str) -> bool:
    """Return whether torch can compile for this kind of device.

    For a CPU it uses the compiler named by the variable CXX, by default g++ (clang++ on macOS).
    """
    if device_kind == "cuda":
        return torch.cuda.get_device_capability() >= MIN_CAPABILITY
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError:
        return False
    return True


def can_compile_steps() -> bool:
    """Return whether this version of torch can compile a step with its gradients."""
    import torch._dynamo

    return hasattr(torch._dynamo.config, "trace_autograd_ops")


class Program:
    """A function that torch compiles once per shape of its arguments.

    Arguments that are not tensors become constants of the program. Random numbers are the same as
    in eager execution.

    Args:
        function: the function to compile.
        fullgraph: whether a graph break is an error.

    Attributes:
        part: the compiled part of a run, as it is named in the run's record.
        seconds: time spent on compiling so far.
        failure: why the function could not be compiled and runs eagerly; None = it did not fail.
    """

    part: ClassVar[str]

    def __init__(self, function: Callable[..., Any], *, fullgraph: bool) -> None:
        self.seconds = 0.0
        self.failure: str | None = None
        self._has_run = False
        self._function = function
        self._program = torch.compile(function, fullgraph=fullgraph, dynamic=False)
        if not _open_programs:
            _set_options()
        _open_programs.append(self)

    def close(self) -> None:
        """Restore torch's options, unless another program still needs them."""
        _open_programs.remove(self)
        if not _open_programs:
            _options.close()

    def _call(self, args: tuple[Any, ...], eager_args: tuple[Any, ...]) -> Any:
        """Call the program, or the function with `eager_args` if it cannot be compiled."""
        if self.failure is not None:
            return self._function(*eager_args)
        stats = torch._dynamo.utils.counters["stats"]
        graphs, started = stats["unique_graphs"], time.perf_counter()
        try:
            with self._first_call(args), _blocked_signals():
                result = self._program(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            if _remove_damaged_file(error):
                return self._call(args, eager_args)
            self.failure = _reason(error)
            sys.stderr.write(f"warning: training runs uncompiled: {self.failure}\n")
            return self._function(*eager_args)
        if stats["unique_graphs"] > graphs:
            self.seconds += time.perf_counter() - started
        return result

    def _first_call(self, args: tuple[Any, ...]) -> AbstractContextManager[None]:
        """Return the context of a call; the first one compiles."""
        if self._has_run:
            return nullcontext()
        self._has_run = True
        shapes = [str(getattr(leaf, "shape", leaf)) for leaf in tree_flatten(args)[0]]
        return compiling("torch", f"the training {self.part}", f"{self.part} {shapes}")


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM in this thread and in all threads and processes that it starts.

    Ctrl-C also reaches g++, which would leave a half-written file in the cache.
    Windows cannot block signals.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove_damaged_file(error: Exception) -> bool:
    """Remove the cached program that could not be loaded, if that was the error."""
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
"""Returns a function that replays a call; its results are in the same arrays every time."""
WARMUP_CALLS = 8
"""Calls with arguments of the same shapes before one is captured. The first one compiles. Capturing
waits for the GPU and takes as long as several calls."""


def capture_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """Capture the kernels of a call in a CUDA graph without running them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


class CapturedProgram:
    """A compiled program whose calls are captured in CUDA graphs and replayed.

    Launching the kernels of a small step one by one takes longer than running them. A replay reads
    from the same addresses as the captured call. Arguments are copied there; everything else that
    the program reads, such as parameters, must stay at its address until `clear` is called. Values
    that are not arrays, and everything that is computed on the host, become constants of the graph.
    Calls with arguments on several devices are therefore not captured.

    Args:
        program: function of nested containers of arrays, which it may change in place.
        capture: `capture_graph`, on a GPU.

    Attributes:
        has_captured: whether a call was captured and no capture failed.
    """

    def __init__(self, program: Callable[..., Any], capture: Capture) -> None:
        self.has_captured = False
        self._program = program
        self._capture: Capture | None = capture
        self._calls: Counter[Any] = Counter()
        # Of each captured call: the static arrays that it reads its arguments from, and its replay.
        self._captured: dict[Any, tuple[list[torch.Tensor], Callable[[], Any]]] = {}

    def clear(self) -> None:
        """Drop all captured calls."""
        self._calls.clear()
        self._captured.clear()

    def __call__(self, *args: Any) -> Any:
        """Call the program, or replay a captured call with arguments of the same shapes.

        An argument that the program returns, possibly changed in place, is returned as the static
        input, which later replays change again. All other results are copies.
        """
        given, containers = tree_flatten(args)
        arrays = [value for value in given if isinstance(value, torch.Tensor)]
        if self._capture is None or len({a.device for a in arrays}) > 1:
            return self._program(*args)
        kind = containers, tuple((a.shape, a.stride(), a.dtype) for a in arrays)
        if kind not in self._captured:
            self._calls[kind] += 1
            if self._calls[kind] <= WARMUP_CALLS or not self._capture_call(kind, given, containers):
                return self._program(*args)
        inputs, replay = self._captured[kind]
        input_ids = {id(array) for array in inputs}

        def copied(array: torch.Tensor) -> torch.Tensor:
            return array if id(array) in input_ids else array.clone()

        moved = [pair for pair in zip(inputs, arrays, strict=True) if pair[0] is not pair[1]]
        if moved:
            # An argument may be the static input of another one: copy it before it is overwritten.
            values = [a.clone() if id(a) in input_ids else a for _, a in moved]
            torch._foreach_copy_([static for static, _ in moved], values)
        return tree_map_only(torch.Tensor, copied, replay())

    def _capture_call(self, kind: Any, given: list[Any], containers: Any) -> bool:
        """Capture a call with arguments of this kind; return whether it succeeded."""
        assert self._capture is not None
        static = [v.clone() if isinstance(v, torch.Tensor) else v for v in given]
        try:
            replay = self._capture(lambda: self._program(*tree_unflatten(static, containers)))
        except RuntimeError as error:
            self._capture, self.has_captured = None, False
            sys.stderr.write(f"warning: training runs without CUDA graphs: {first_line(error)}\n")
            return False
        inputs = [value for value in static if isinstance(value, torch.Tensor)]
        self._captured[kind], self.has_captured = (inputs, replay), True
        return True


def _reason(error: Exception) -> str:
    """Return the first line of an error of torch's compiler and its debug context."""
    first, marker = first_line(error), "Developer debug context:"
    lines = str(error).splitlines()
    context = next((line.partition(marker)[2].strip() for line in lines if marker in line), "")
    return f"{first}: {context}" if context else first


class CompiledNetwork(Program):
    """The forward and backward pass of a network, compiled for training.

    Args:
        module: the network; calling it directly still runs it eagerly.
    """

    part: ClassVar[str] = "network"

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module, fullgraph=False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs to logits."""
        return self._call((x,), (x,))


class CompiledSteps(Program):
    """Training steps, compiled as programs of several steps each.

    The scalars of `hparams` (learning rate, coefficients of the algorithm) are arguments of the
    program, so that other tasks and other jobs of a grid can use it too.

    Args:
        steps: function of (batches, plan rows, optimizer state, algorithm state, hparams).
        constants: names of scalars to compile into the program, as torch's fused updates require.
        device: where the steps run.
        capture: how a CapturedProgram captures calls; None = do not capture any.
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
        super().__init__(steps, fullgraph=True)
        self._capturing = None if capture is None else CapturedProgram(self._program, capture)
        if self._capturing is not None:
            self._program = self._capturing
        self._constants, self._device = constants, device
        self._hparams: dict[str, float] = {}
        self._scalars: dict[str, float | torch.Tensor] = {}

    def lengths(self, steps: int) -> list[int]:
        """Return the number of steps of each program call; the remainder is run step by step."""
        whole, rest = divmod(steps, STEPS_PER_PROGRAM)
        return [STEPS_PER_PROGRAM] * whole + [1] * rest

    @property
    def has_captured(self) -> bool | None:
        """Whether a call was captured and no capture failed; None = capturing is off."""
        return None if self._capturing is None else self._capturing.has_captured

    def end_chunk(self) -> None:
        """Drop captured calls, because hooks may replace arrays that the steps read."""
        if self._capturing is not None:
            self._capturing.clear()

    def __call__(self, batches: Any, row: Any, opt_state: Any, state: Any, hparams: Any) -> Any:
        """Run the steps; see `TorchEngine._run_steps`."""
        if hparams != self._hparams:
            self._hparams = hparams
            self._scalars = {
                name: value if name in self._constants else torch.tensor(value, device=self._device)
                for name, value in hparams.items()
            }
        given = batches, row, opt_state, state
        return self._call((*given, self._scalars), (*given, hparams))


def keep_programs() -> None:
    """Have torch cache its programs where they survive a restart and other nodes find them.

    By default torch uses the directory for temporary files. It still does so if the home directory
    is not writable, or if this process has imported torch's compiler before.

    Raises:
        ConfigError: the environment variable names a folder that cannot be written to.
    """
    folder = compilation_cache("torch")
    if folder is not None:
        os.environ[VARIABLES["torch"]] = folder


def _set_options() -> None:
    """Set the options of torch that compiling a training step needs."""
    import torch._dynamo
    import torch._inductor.config

    newer = hasattr(torch._dynamo.config, "recompile_limit")
    limit = "recompile_limit" if newer else "cache_size_limit"
    options: dict[str, Any] = {limit: 4096, f"accumulated_{limit}": 4096}
    if can_compile_steps():
        options["trace_autograd_ops"] = True
    _options.enter_context(torch._dynamo.config.patch(**options))
    _options.enter_context(torch._inductor.config.patch(fallback_random=True))

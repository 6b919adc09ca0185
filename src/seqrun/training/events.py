"""Events: calls the hooks around every event of a run, if they are overridden."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from seqrun.plan import Chunk
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.callback import EVENTS, HOOKS, STEP_HOOKS, BaseCallback, Run
from seqrun.training.step import Step

Hooks = list[Callable[..., None]]


class Events:
    """The hooks of one run: first the algorithm's own, then those of the callbacks in order.

    Args:
        run: the argument of the callbacks' hooks.
        algorithm: the algorithm of the run.

    Attributes:
        has_host_step_hooks: whether a callback overrides a step-level hook.
        has_periodic_hooks: whether `on_every_n_steps` of a callback is called.
    """

    def __init__(self, run: Run, algorithm: BaseAlgorithm) -> None:
        self._run, self._algorithm = run, algorithm
        self._callbacks: dict[str, Hooks] = {
            hook: [
                partial(getattr(callback, hook), run)
                for callback in run.callbacks
                if getattr(type(callback), hook) is not getattr(BaseCallback, hook)
            ]
            for hook in HOOKS
        }
        self._periodic = [
            (c.every_n_steps, c) for c in run.callbacks if c.every_n_steps is not None
        ]
        self.has_host_step_hooks = any(self._callbacks[hook] for hook in STEP_HOOKS)
        self.has_periodic_hooks = bool(self._periodic)
        algorithm.dispatch = self.dispatch
        self.before = {event: self._hooks_at(f"on_before_{event}") for event in EVENTS}
        self.after = {event: self._hooks_at(f"on_after_{event}") for event in EVENTS}
        self._backward = self._step_part(algorithm.backward)
        self._optimizer_step = self._step_part(algorithm.optimizer_step)

    def dispatch(self, hook: str, *args: Any) -> None:
        """Call a hook of every callback that overrides it."""
        for call in self._callbacks[hook]:
            call(*args)

    def _hooks_at(self, hook: str) -> Hooks:
        kind, calls = type(self._algorithm), []
        if getattr(kind, hook) is not getattr(BaseAlgorithm, hook):
            own = getattr(self._algorithm, hook)
            calls.append(self._step_part(own) if hook in STEP_HOOKS else own)
        for_callbacks = f"{hook}_callbacks"
        if getattr(kind, for_callbacks) is not getattr(BaseAlgorithm, for_callbacks):
            calls.append(getattr(self._algorithm, for_callbacks))  # the method calls the callbacks
        else:
            calls += self._callbacks[hook]
        return calls

    def _step_part(self, function: Callable[[Step], None]) -> Callable[[Step], None]:
        """Return a part of a training step, compiled by itself if hooks run on the host."""
        engine = self._algorithm.engine
        return engine.compiled_part(function) if self.has_host_step_hooks else function

    @contextmanager
    def around(self, event: str, *args: Any) -> Iterator[None]:
        """Call the event's hooks before this block and, unless it raises, after it."""
        for hook in self.before[event]:
            hook(*args)
        yield
        for hook in self.after[event]:
            hook(*args)

    def run_step(self, step: Step) -> None:
        """Run one training step, with the same events in the same order on both frameworks."""
        before, after = self.before, self.after
        for hook in before["training_step"]:
            hook(step)
        for hook in before["backward"]:
            hook(step)
        self._backward(step)
        for hook in after["backward"]:
            hook(step)
        for hook in before["optimizer_step"]:
            hook(step)
        self._optimizer_step(step)
        for hook in after["optimizer_step"]:
            hook(step)
        for hook in after["training_step"]:
            hook(step)

    # ---- callbacks that observe the model every n steps

    def segments(self, chunk: Chunk) -> list[Chunk]:
        """Return the chunk, split after the steps at which `on_every_n_steps` is due."""
        first, steps = chunk.first_step, chunk.steps
        periods = [n for n, _ in self._periodic]
        ends = [s for s in range(1, steps) if any((first + s) % n == 0 for n in periods)]
        arrays = chunk.arrays.items()
        return [
            replace(chunk, first_step=first + a, arrays={n: v[a:b] for n, v in arrays})
            for a, b in pairwise([0, *ends, steps])
        ]

    def end_segment(self, step: int) -> None:
        """Call `on_every_n_steps` of the callbacks for which it is due after `step` steps."""
        due = [callback for n, callback in self._periodic if step % n == 0]
        if not due:
            return
        timing = self._run.progress.timing
        started, compiled = time.perf_counter(), timing["compile_seconds"]
        for callback in due:
            callback.on_every_n_steps(self._run, step)
        compiled = timing["compile_seconds"] - compiled
        timing["eval_seconds"] += time.perf_counter() - started - compiled

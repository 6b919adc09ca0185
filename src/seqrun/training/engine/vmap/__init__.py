"""Several runs in lockstep: they wait for each other at every compiled call.

Each run is an ordinary `fit` in its own thread. Only one thread works at a time, in a fixed order,
until it requests a compiled call. A run therefore needs no thread-safe code, and the same command
always does the same things in the same order. When every run has requested a call, the thread that
started the runs answers all of them. An engine's group answers as many as possible with one
program.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """A compiled call that a participant requests.

    Attributes:
        name: of the function; participants that request the same name request the same function.
        function: pure function of arrays.
        args: its arguments.
        timing: the run's timing, to whose "compile_seconds" compilation is added.
    """

    name: str
    function: Callable
    args: tuple
    timing: dict[str, float]


class Failure(NamedTuple):
    """An error in place of a result."""

    error: BaseException


class Ended(NamedTuple):
    """The result of a participant's work, or Failure."""

    result: Any


class Participant:
    """One of the runs: its thread, and the messages between it and the group's thread.

    Args:
        group: the group that the run belongs to.
        work: function that the thread calls with the participant.

    Attributes:
        ended: result of the work; None = not finished.
        requested: the call that the participant waits for; None = it has ended or not started.
    """

    def __init__(self, group: BaseVmapGroup, work: Callable[[Participant], Any]) -> None:
        self.group = group
        self.ended: Ended | None = None
        self.requested: Call | None = None
        self._work = work
        self._is_working = False
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._messages: SimpleQueue[Call | Ended] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    # ---- in the participant's thread

    def call(self, call: Call) -> Any:
        """Return the result of a call, after all other participants have requested a call too."""
        self._messages.put(call)
        answer = self._answers.get()
        if isinstance(answer, Failure):
            raise answer.error
        return answer

    def _run(self) -> None:
        try:
            result = self._work(self)
        except BaseException as error:
            result = Failure(error)
        self._messages.put(Ended(result))

    # ---- in the group's thread

    def resume(self, answer: Any) -> None:
        """Give the participant its answer; wait until it requests another call or ends."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._answers.put(answer)
        self._is_working = True
        self._wait()

    def _wait(self) -> None:
        message = self._messages.get()
        self._is_working = False
        if isinstance(message, Ended):
            self.ended, self.requested = message, None
            self._thread.join()
        else:
            self.requested = message

    def stop(self, error: BaseException) -> None:
        """End the work by raising `error` in it."""
        if self._thread.ident is None:
            self.ended = Ended(Failure(error))
        if self._is_working:
            self._wait()
        while self.ended is None:
            self.resume(Failure(error))


class BaseVmapGroup:
    """Runs that wait for each other at every call; subclasses define how calls are answered."""

    def place(self, array: np.ndarray, device: Any) -> Any:
        """Return `array` on the device, for a participant."""
        raise NotImplementedError

    def answer(self, calls: Mapping[Participant, Call]) -> Mapping[Participant, Any]:
        """Return each call's result, or Failure."""
        raise NotImplementedError

    def run(
        self,
        works: Sequence[Callable[[Participant], Any]],
        on_end: Callable[[int, Any], None],
    ) -> None:
        """Run all functions in lockstep. When one ends or fails, the others continue.

        Args:
            works: functions of a Participant, which they must set as `engine.participant`.
            on_end: called with the index of a function and its result, or Failure, when it ends.

        Raises:
            BaseException: a signal, or an error of `on_end`; it has been raised in all functions
                that were still running.
        """
        participants = [Participant(self, work) for work in works]
        try:
            answers: Mapping[Participant, Any] = dict.fromkeys(participants)
            while answers:
                for index, participant in enumerate(participants):
                    if participant.ended is None:
                        participant.resume(answers[participant])
                        if participant.ended is not None:
                            on_end(index, participant.ended.result)
                calls = {p: p.requested for p in participants if p.requested is not None}
                answers = self.answer(calls)
        except BaseException as error:
            for participant in participants:
                participant.stop(error)
            raise

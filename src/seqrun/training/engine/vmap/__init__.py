"""Several runs in step, which meet at every compiled call.

Each run is an ordinary `fit` in a thread of its own, but only one thread works at a time, in a
fixed order, and only until it asks for a compiled call: nothing that a run does has to be safe for
threads, and the same command does the same in the same order. When all have asked, the calling
thread answers all calls, an engine's ensemble as many of them as it can by one program.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """A call that a participant waits for.

    Attributes:
        name: of what is called: participants that ask for the same name ask for the same function.
        function: pure, of arrays.
        args: of it.
        timing: the run's, whose "compile_seconds" count what was spent on compiling meanwhile.
    """

    name: str
    function: Callable
    args: tuple
    timing: dict[str, float]


class Failure(NamedTuple):
    """An error in place of a result."""

    error: BaseException


class Ended(NamedTuple):
    """What a participant's work returned, or Failure."""

    result: Any


class Participant:
    """One of the runs: what its thread and the ensemble's tell each other.

    Args:
        ensemble: whose participant it is.
        work: what its thread does; called with the participant.
    """

    def __init__(self, ensemble: BaseEnsemble, work: Callable[[Participant], Any]) -> None:
        self.ensemble = ensemble
        self.ended: Ended | None = None
        self.asked: Call | None = None
        self._work = work
        self._is_working = False
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._told: SimpleQueue[Call | Ended] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    # ---- in the participant's thread

    def call(self, call: Call) -> Any:
        """Return the call's result, after all other participants have asked for theirs."""
        self._told.put(call)
        answer = self._answers.get()
        if isinstance(answer, Failure):
            raise answer.error
        return answer

    def _run(self) -> None:
        try:
            result = self._work(self)
        except BaseException as error:
            result = Failure(error)
        self._told.put(Ended(result))

    # ---- in the ensemble's thread

    def resume(self, answer: Any) -> None:
        """Give the participant what it waits for; let it work until it asks again or has ended."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._answers.put(answer)
        self._is_working = True
        self._wait()

    def _wait(self) -> None:
        told = self._told.get()
        self._is_working = False
        if isinstance(told, Ended):
            self.ended, self.asked = told, None
            self._thread.join()
        else:
            self.asked = told

    def stop(self, error: BaseException) -> None:
        """End the work with `error`, wherever it stands."""
        if self._thread.ident is None:
            self.ended = Ended(Failure(error))
        if self._is_working:
            self._wait()
        while self.ended is None:
            self.resume(Failure(error))


class BaseEnsemble:
    """Runs that meet at every call; an engine says how calls are answered."""

    def place(self, array: np.ndarray, device: Any) -> Any:
        """Return a participant's array on the device."""
        raise NotImplementedError

    def answer(self, calls: Mapping[Participant, Call]) -> Mapping[Participant, Any]:
        """Return each call's result, or Failure."""
        raise NotImplementedError

    def run(
        self,
        works: Sequence[Callable[[Participant], Any]],
        ended: Callable[[int, Any], None],
    ) -> None:
        """Do all works in step. One that ends, or fails, leaves; the others go on.

        Args:
            works: each called with a participant, which its algorithm's `participant` is to be.
            ended: called with the place of each work and its result, or Failure, when it ends.

        Raises:
            BaseException: whatever came up here, a signal or an error of `ended`; the works have
                been ended with it.
        """
        participants = [Participant(self, work) for work in works]
        try:
            answers: Mapping[Participant, Any] = dict.fromkeys(participants)
            while answers:
                for place, participant in enumerate(participants):
                    if participant.ended is None:
                        participant.resume(answers[participant])
                        if participant.ended is not None:
                            ended(place, participant.ended.result)
                calls = {p: p.asked for p in participants if p.asked is not None}
                answers = self.answer(calls)
        except BaseException as error:
            for participant in participants:
                participant.stop(error)
            raise

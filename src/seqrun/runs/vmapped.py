"""Several runs of one structure in one process, their compiled calls shared.

Which runs may be trained so is for others to say: seeds of one experiment, or what
`seqrun.sweeps.grouping` finds. Here they are cut into groups that fit memory and run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from seqrun.callbacks import TqdmCallback
from seqrun.loggers.console import ConsoleLogger
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.engine.vmap import Failure, Participant
from seqrun.training.limits import needs_of, plan_lengths, total_bytes

MOST_RUNS = 256
"""Runs in one program, however small they are."""
SHARE = 0.5
"""Of the memory, that the estimates of a group's runs may take.

Activations are not in them; where these do not fit a device, its ensemble cuts the program.
"""

Join = Callable[[BaseAlgorithm], None]
"""Called with an algorithm before it is fit: makes it one of several."""


def run_together(
    first: BaseAlgorithm,
    size: int,
    works: Sequence[Callable[[Join], Any]],
    ended: Callable[[int, Any], None],
) -> None:
    """Do all works, `size` in step, one group after the other.

    Args:
        first: a run like those of the works; it is not trained.
        size: of a group, as `runs_at_once` says.
        works: each builds an algorithm, calls its argument with it, and fits it.
        ended: called with the place of each work and its result, or the exception that ended it.

    Raises:
        KeyboardInterrupt: a signal ended the runs.
    """
    interruptions: list[BaseException] = []

    def work_of(work: Callable[[Join], Any]) -> Callable[[Participant], Any]:
        return lambda participant: work(lambda algorithm: _join(algorithm, participant))

    for start in range(0, len(works), size):

        def ended_here(place: int, result: Any, start: int = start) -> None:
            if isinstance(result, Failure) and not isinstance(result.error, Exception):
                interruptions.append(result.error)
            else:
                error = isinstance(result, Failure)
                ended(start + place, result.error if error else result)

        group = [work_of(work) for work in works[start : start + size]]
        first.engine.new_ensemble().run(group, ended_here)
        if interruptions:
            raise interruptions[0]


def _join(algorithm: BaseAlgorithm, participant: Participant) -> None:
    """Make the algorithm a participant, and silent: the lines of several would be mixed."""
    algorithm.engine.participant = participant
    algorithm.engine.execution["strategy"] = "vmap"
    algorithm.callbacks = [c for c in algorithm.callbacks if not isinstance(c, TqdmCallback)]
    algorithm.loggers = [g for g in algorithm.loggers if not isinstance(g, ConsoleLogger)]


def runs_at_once(algorithm: BaseAlgorithm) -> int:
    """Return how many runs such as this one are trained in one program.

    A function of the run's shapes and of the memory of machine and device, whatever of it is in use
    just now, so that the same command always cuts its runs into the same groups.

    Args:
        algorithm: that was built; it is set up as far as its size takes.
    """
    engine = algorithm.engine
    algorithm.benchmark.prepare(algorithm.random)
    engine.start()
    plan_lengths(algorithm)
    engine.set_weights(algorithm.initial_weights())
    algorithm.persistent = algorithm.initial_persistent_state()
    needed = sum(need.num_bytes for need in needs_of(algorithm))
    engine.stop()
    total = total_bytes()
    fitting = int(SHARE * min(total, engine.device_bytes or total) / needed)
    return max(1, min(MOST_RUNS, fitting))

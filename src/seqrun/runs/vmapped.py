"""Train several runs of the same structure in one compiled program (vmap).

The caller knows which runs have the same structure: the seeds of one experiment, or the groups that
`seqrun.sweeps.grouping` finds. Here they are split into groups that fit into memory, and run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from seqrun.callbacks import TqdmCallback
from seqrun.loggers.console import ConsoleLogger
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.engine.vmap import Failure, Participant
from seqrun.training.limits import needs_of, plan_lengths, total_bytes

MAX_RUNS = 256
"""Most runs in one program, however small they are."""
SHARE = 0.5
"""Share of the memory that the estimates for a group's runs may add up to.

The estimates leave out activations; if those do not fit on the device, the group splits the
program.
"""

Join = Callable[[BaseAlgorithm], None]
"""Called with an algorithm before it is trained, to make it share its program with others."""


def run_vmapped(
    first: BaseAlgorithm,
    size: int,
    works: Sequence[Callable[[Join], Any]],
    on_end: Callable[[int, Any], None],
) -> None:
    """Run all works, group after group; the works of a group run at once, in one program.

    Args:
        first: an algorithm like those of the works; it is not trained.
        size: number of works in a group, from `runs_at_once`.
        works: each builds an algorithm, passes it to its argument, and trains it.
        on_end: called with the index of each work and its result, or the exception that ended it.

    Raises:
        KeyboardInterrupt: a signal ended the runs.
    """
    interruptions: list[BaseException] = []

    def work_of(work: Callable[[Join], Any]) -> Callable[[Participant], Any]:
        return lambda participant: work(lambda algorithm: _join(algorithm, participant))

    for start in range(0, len(works), size):

        def on_end_here(place: int, result: Any, start: int = start) -> None:
            if isinstance(result, Failure) and not isinstance(result.error, Exception):
                interruptions.append(result.error)
            else:
                error = isinstance(result, Failure)
                on_end(start + place, result.error if error else result)

        group = [work_of(work) for work in works[start : start + size]]
        first.engine.new_vmap_group().run(group, on_end_here)
        if interruptions:
            raise interruptions[0]


def _join(algorithm: BaseAlgorithm, participant: Participant) -> None:
    """Make the algorithm a participant, and silent: the output of several would be mixed."""
    algorithm.engine.participant = participant
    algorithm.engine.execution["strategy"] = "vmap"
    algorithm.callbacks = [c for c in algorithm.callbacks if not isinstance(c, TqdmCallback)]
    algorithm.loggers = [g for g in algorithm.loggers if not isinstance(g, ConsoleLogger)]


def runs_at_once(algorithm: BaseAlgorithm) -> int:
    """Return how many runs like this one are trained in one program.

    The number depends on the run's shapes and on the total memory of machine and device, not on how
    much is in use, so that the same command always forms the same groups.

    Args:
        algorithm: one of the runs, built; it is set up only as far as its size requires.
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
    return max(1, min(MAX_RUNS, fitting))

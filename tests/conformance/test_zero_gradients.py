"""A gradient that is zero in mathematics is zero in floating point.

Adam divides a gradient by its own size, so that the rounding error of a zero would become a full
step. At the start of a task the distance to an anchor or to an old network is zero, classes that a
loss excludes have no gradient, and neither has what a softmax does not see.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from experiments import ALGORITHMS, admits, build, cases
from parity.cases import SMALLER

from seqrun.callbacks import BaseCallback
from seqrun.plan import Chunk
from seqrun.training.callback import Run

BETA1 = 0.9  # Adam's first step leaves (1 - BETA1) times the gradient in its first moment
ROUNDING = 2e-7
"""Share of the largest gradient: the rounding error of a sum that should be 0 lies below it.

So does, now and then, the gradient of a single weight, but not those of all weights into or out of
a unit.
"""
OPTIONS: dict[str, dict[str, Any]] = {
    "lamaml": {"sync_update": True},  # otherwise the step is not Adam's
    "kcl": {"tau": 1.0},  # all the prior's gradients have this factor, 1e-4 by default
}


class FirstSteps(BaseCallback):
    """Keep the gradient of the first step of each task, by the moments that Adam made of it.

    It has no step hook, which would make JAX compile the parts of a step one by one.

    Attributes:
        gradients: task -> parameter name -> gradient.
    """

    def __init__(self) -> None:
        self.gradients: dict[int, dict[str, np.ndarray]] = {}

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Keep the task's first."""
        if run.task not in self.gradients:
            prefix, arrays = "optimizer/exp_avg/", run.algorithm.export_arrays()
            self.gradients[run.task] = {
                name.removeprefix(prefix): array / (1 - BETA1)
                for name, array in arrays.items()
                if name.startswith(prefix)
            }


FULL = {
    (algo, scenario, backend)
    for algo in ALGORITHMS
    for scenario in ("task", "class", "domain")
    for backend in ("torch", "jax")
    if backend == "jax" and (algo, scenario) not in [("icarl", "class"), ("kcl", "task")]
}
CASES = [
    case
    for case in cases(ALGORITHMS, ("task", "class", "domain"), ("torch", "jax"), full=FULL)
    if admits(case.values[0], {"benchmark": "split_digits", "stream": {"scenario": case.values[1]}})
]


@pytest.mark.ci
@pytest.mark.parametrize(("algo", "scenario", "backend"), CASES)
def test_the_first_step_of_a_task_has_no_rounding_errors_for_gradients(
    algo: str, scenario: str, backend: str
):
    """Under Adam, in every task."""
    first = FirstSteps()
    build(
        algo,
        backend,
        benchmark="split_digits",
        stream={"num_tasks": 3, "classes_per_task": [4, 3, 3], "scenario": scenario},
        optimizer="adam",
        training={"epochs_per_task": 1, "chunk_steps": 1},
        callbacks=[first],
        **SMALLER.get(algo, {}) | OPTIONS.get(algo, {}),
    ).fit()
    assert len(first.gradients) == 3
    for task, gradients in first.gradients.items():
        largest = max(abs(g).max() for g in gradients.values())
        assert largest > 1e-3
        for name, gradient in gradients.items():
            size = abs(gradient) / largest
            for axis in range(gradient.ndim):
                line = size.max(tuple(set(range(gradient.ndim)) - {axis}))
                noise = (line > 0) & (line < ROUNDING)
                assert not noise.any(), f"task {task}, {name}, axis {axis}: {line[noise]}"

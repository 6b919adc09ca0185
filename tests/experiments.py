"""Small experiments that the suites share: every algorithm of conf/algo, on both backends.

An algorithm joins the suites by having a file in conf/algo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from _pytest.mark import ParameterSet

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.callbacks import BaseCallback
from seqrun.plan import Chunk
from seqrun.training.callback import Run
from seqrun.training.engine.arrays import flatten_state

CONF = Path(__file__).parents[1] / "conf"
BACKENDS = ("torch", "jax")
ALGORITHMS = tuple(sorted(path.stem for path in (CONF / "algo").glob("*.yaml")))

every_algorithm = pytest.mark.parametrize("algo", ALGORITHMS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
jax_in_full = pytest.mark.parametrize(
    "backend", ["torch", pytest.param("jax", marks=pytest.mark.full)]
)
"""For tests that say the same on both backends: `make test` runs PyTorch's alone."""


def cases(*axes: Iterable[Any], **marked: Iterable[tuple]) -> list[ParameterSet]:
    """Return every combination of some axes for `parametrize`.

    Args:
        axes: values of each argument.
        marked: mark -> the combinations that have it.
    """
    marks = {case: getattr(pytest.mark, mark) for mark, those in marked.items() for case in those}
    return [
        pytest.param(*case, id="-".join(map(str, case)), marks=marks.get(case, ()))
        for case in product(*axes)
    ]


SMALL: dict[str, dict[str, Any]] = {
    # 9 steps an epoch, the last of 5 samples
    "rotated_digits": {"num_tasks": 3, "samples_per_task": 85, "batch_size": 10},
    "permuted_digits": {"num_tasks": 3, "samples_per_task": 85, "batch_size": 10},
    # 5 steps an epoch, the last of 5 samples
    "split_digits": {"num_tasks": 5, "samples_per_task": 45, "batch_size": 10},
}


def component(group: str, name: str, backend: str) -> tuple[type, dict[str, Any]]:
    """Return the class that a file of conf/ names, and its keys as they are shipped."""
    keys = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    target = keys.pop("_target_").replace("${backend}", backend)
    module, _, kind = target.rpartition(".")
    return getattr(import_module(module), kind), keys


def algorithm_class(algo: str, backend: str) -> type[BaseAlgorithm]:
    """Return an algorithm's class."""
    return component("algo", algo, backend)[0]


def admits(algo: str, spec: Mapping[str, Any]) -> bool:
    """Return whether an algorithm can work in the scenario that a specification names, if any."""
    benchmark = spec.get("benchmark")
    if benchmark is None:
        return True
    ordinary = component("benchmark", benchmark, "torch")[1].get("scenario", "domain")
    scenario = spec.get("stream", {}).get("scenario", ordinary)
    return scenario in algorithm_class(algo, "torch").scenarios


def build(
    algo: str,
    backend: str,
    *,
    benchmark: str | None = None,
    stream: Mapping[str, Any] | None = None,
    network: str = "mlp",
    backbone: Mapping[str, Any] | None = None,
    optimizer: str = "sgd",
    optimizer_options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    kind: Callable[..., BaseAlgorithm] | None = None,
    callbacks: Sequence[BaseCallback] = (),
    seed: int = 0,
    streams: Mapping[str, int | None] | None = None,
    **options: Any,
) -> BaseAlgorithm:
    """Construct a small experiment as conf/ ships it, but for what is given.

    Args:
        algo, backend: which algorithm.
        benchmark: of conf/benchmark; None = rotated_digits, or split_digits in a scenario that
            the algorithm admits. `stream` overrides its keys and the small sizes above.
        network: of conf/backbone.
        backbone: keys of the network; 2 layers of 16 units otherwise, if it is the MLP.
        optimizer: of conf/optimizer; `optimizer_options` override its keys.
        training: keys of TrainingOptions; 2 epochs otherwise.
        kind: a class of the test's own, in place of the algorithm's.
        callbacks, seed, streams: as in BaseAlgorithm.
        options: the algorithm's own hyper-parameters.
    """
    make, keys = component("algo", algo, backend)
    scenarios = (kind or make).scenarios
    if benchmark is None:
        benchmark = "rotated_digits"
        if "domain" not in scenarios:
            benchmark, stream = "split_digits", dict(stream or {}) | {"scenario": scenarios[-1]}
            training = _for_tasks(SMALL[benchmark]["num_tasks"], training)
    make_stream, stream_keys = component("benchmark", benchmark, backend)
    stream_keys |= SMALL.get(benchmark, {}) | dict(stream or {})
    make_backbone, backbone_keys = component("backbone", network, backend)
    if network == "mlp":
        backbone_keys["width"] = 16
    make_optimizer, optimizer_keys = component("optimizer", optimizer, backend)
    if optimizer == "sgd":
        optimizer_keys["lr"] = 0.05
    if "momentum" in keys and (optimizer != "sgd" or "momentum" in (optimizer_options or {})):
        keys["momentum"] = None  # stable_sgd leaves it to an optimizer that is given
    return (kind or make)(
        benchmark=make_stream(**stream_keys),
        backbone=make_backbone(**backbone_keys | dict(backbone or {})),
        optimizer=make_optimizer(**optimizer_keys | dict(optimizer_options or {})),
        training=TrainingOptions(**{"epochs_per_task": 2} | dict(training or {})),
        callbacks=list(callbacks),
        seed=seed,
        streams=dict(streams or {}),
        device="cpu",
        **keys | options,
    )


def _for_tasks(num_tasks: int, training: Mapping[str, Any] | None) -> dict[str, Any]:
    """Repeat a list of epochs for a stream of another length."""
    training = dict(training or {})
    if isinstance(training.get("epochs_per_task"), list):
        training["epochs_per_task"] = np.resize(training["epochs_per_task"], num_tasks).tolist()
    return training


def exported(backend: str, **groups: Any) -> dict[str, np.ndarray]:
    """Copy groups of arrays by canonical name and layout, as `export_arrays` names them."""
    named = flatten_state(groups)
    if backend == "jax":
        return {name: np.array(value) for name, value in named.items()}
    from seqrun.formulas.parameters.torch import to_canonical

    return {n: to_canonical(v.detach(), n).clone().numpy() for n, v in named.items()}


@dataclass
class LossRecorder(BaseCallback):
    """Keep the task loss of every step; costs no step hook.

    Attributes:
        losses, correct: one array per chunk.
    """

    losses: list[np.ndarray] = field(default_factory=list)
    correct: list[np.ndarray] = field(default_factory=list)

    def on_after_chunk(self, run: Run, chunk: Chunk) -> None:
        """Keep the chunk's."""
        self.losses.append(np.array(chunk.losses))
        self.correct.append(np.array(chunk.correct))


@dataclass
class StepRecorder(BaseCallback):
    """Keep everything of every step; being a step hook, it makes the JAX engine go step by step.

    Attributes:
        steps: per step, parameters, statistics, optimizer and algorithm state after it, and the
            gradients that the optimizer was given.
    """

    steps: list[dict[str, np.ndarray]] = field(default_factory=list)

    def on_after_optimizer_step(self, run: Run, step: Any) -> None:
        """Keep the step's arrays."""
        self.steps.append(
            exported(
                run.algorithm.backend,
                params=step.params,
                stats=step.stats,
                optimizer=step.opt_state,
                state=step.state,
                gradients=step.gradients,
            )
        )


@dataclass
class Row:
    """The model as it stood when a row of the accuracy matrix was measured.

    Attributes:
        weights: task (1-based) -> parameters and statistics that it was evaluated with.
        reads: task -> what else it was evaluated with.
        masks: task (1-based) -> (C,) classes that were allowed, None = all.
    """

    weights: dict[int, dict[str, np.ndarray]]
    reads: dict[int, Any]
    masks: dict[int, np.ndarray | None]

    def logits(self, algorithm: BaseAlgorithm, task: int) -> np.ndarray:
        """Return the (N, C) test logits of a task, by `algorithm`'s engine."""
        x = algorithm.benchmark.task_data(task, algorithm.benchmark.evaluation_split).x
        params, stats = (
            {n.removeprefix(g): a for n, a in self.weights[task].items() if n.startswith(g)}
            for g in ("params/", "stats/")
        )
        if algorithm.backend == "jax":
            known = params, stats, self.batches[task]
            logits = np.array(algorithm.evaluation_logits(*known, algorithm.engine.inputs(x)))
        else:
            import torch

            from seqrun.formulas.parameters.torch import from_canonical

            live = (
                {n: from_canonical(torch.from_numpy(a), n) for n, a in group.items()}
                for group in (params, stats)
            )
            with torch.no_grad():
                inputs = algorithm.engine.inputs(torch.from_numpy(x))
                logits = algorithm.evaluation_logits(*live, self.batches[task], inputs).numpy()
        if self.masks[task] is not None:
            logits[:, ~self.masks[task]] = np.finfo(np.float32).min
        return logits


@dataclass
class RowRecorder(BaseCallback):
    """Keep the model of every measured row; a row measured twice is kept as it was last.

    Attributes:
        rows: row of the accuracy matrix -> model.
    """

    rows: dict[int, Row] = field(default_factory=dict)

    def on_after_validation(self, run: Run) -> None:
        """Keep the row's."""
        tasks = range(1, run.algorithm.num_tasks + 1)
        weights = {}
        for task in tasks:
            params, stats = run.algorithm.evaluation_weights(task)
            weights[task] = exported(run.algorithm.backend, params=params, stats=stats)
        masks = {task: run.algorithm.evaluation_mask(task) for task in tasks}
        reads = {task: run.algorithm.evaluation_arrays(task) for task in tasks}
        self.rows[run.task] = Row(weights, reads, masks)


@dataclass
class Trace:
    """What a run left.

    Attributes:
        algorithm: after `fit`.
        losses, correct: (steps,) of every training step.
        steps: see StepRecorder; [] if the run was not stepped through.
        arrays: everything that the run carries at its end.
        matrix: (T+1, T) accuracies.
        rows: the model behind every row of it.
    """

    algorithm: BaseAlgorithm
    losses: np.ndarray
    correct: np.ndarray
    steps: list[dict[str, np.ndarray]]
    arrays: dict[str, np.ndarray]
    matrix: np.ndarray
    rows: dict[int, Row]


def run(algo: str, backend: str, *, stepped: bool = False, **spec: Any) -> Trace:
    """Build, fit and return the trace; `stepped` records every step's arrays."""
    losses, rows, steps = LossRecorder(), RowRecorder(), StepRecorder()
    mine = [losses, rows, steps] if stepped else [losses, rows]
    algorithm = build(algo, backend, **spec | {"callbacks": [*spec.get("callbacks", ()), *mine]})
    algorithm.fit()
    return Trace(
        algorithm,
        np.concatenate(losses.losses),
        np.concatenate(losses.correct),
        steps.steps,
        algorithm.export_arrays(),
        algorithm.accuracy_matrix.copy(),
        rows.rows,
    )


def shared_run(algo: str, backend: str, *, stepped: bool = False, **spec: Any) -> Trace:
    """Return `run` of a plain specification, done once however many tests ask; don't change it."""
    return _cached(algo, backend, stepped, repr(sorted(spec.items())), _Spec(spec))


class _Spec(dict):
    """A specification that takes no part in the cache's key: its text does."""

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Spec)


_jax_runs = count(1)


@cache
def _cached(algo: str, backend: str, stepped: bool, text: str, spec: _Spec) -> Trace:
    trace = run(algo, backend, stepped=stepped, **spec)
    if backend == "jax":
        import jax

        # A kept run's programs have up to 900 memory maps, and a process may have 65,530, beyond
        # which XLA crashes. What is asked for again is compiled again.
        trace.algorithm.engine._programs.clear()  # type: ignore[attr-defined]
        if next(_jax_runs) % 16 == 0:
            jax.clear_caches()
    return trace

"""EarlyStoppingCallback: when it stops, and which weights a task ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from experiments import build, every_algorithm, every_backend, jax_in_full
from runs.test_resume import StopAfter, Stopped, assert_same_end

from seqrun.callbacks import BaseCallback, CheckpointCallback, EarlyStoppingCallback, MetricCallback
from seqrun.checks import ConfigError
from seqrun.loggers import LocalLogger
from seqrun.records import checkpoint
from seqrun.training.callback import Run
from seqrun.training.trainer import Trainer

SPEC: dict[str, Any] = {
    "stream": {"num_tasks": 2, "samples_per_task": 60, "validation_fraction": 0.1},
    "optimizer_options": {"lr": 0.2, "momentum": 0.9},
    "training": {"epochs_per_task": 12, "evaluate_every": "epoch", "chunk_steps": 4},
}


def weights_of(algorithm: Any) -> dict[str, np.ndarray]:
    arrays = algorithm.export_arrays()
    return {n: a for n, a in arrays.items() if n.startswith(("params/", "stats/"))}


@dataclass
class Ends(BaseCallback):
    """Record everything that the run carries when the first task has ended."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def on_after_validation(self, run: Run) -> None:
        if run.task == 1:
            self.arrays = run.algorithm.export_arrays()


@dataclass
class Epochs(BaseCallback):
    """Record the accuracy and the weights after every epoch.

    Attributes:
        accuracy, weights: task -> one entry per epoch.
    """

    accuracy: dict[int, list[float]] = field(default_factory=dict)
    weights: dict[int, list[dict[str, np.ndarray]]] = field(default_factory=dict)
    at_task_end: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def on_after_epoch(self, run: Run) -> None:
        self.weights.setdefault(run.task, []).append(weights_of(run.algorithm))

    def on_after_task(self, run: Run) -> None:
        self.at_task_end[run.task] = weights_of(run.algorithm)

    def on_after_validation(self, run: Run) -> None:
        if task := run.task:
            accuracy = run.matrix[task, task - 1]
            self.accuracy.setdefault(task, []).append(accuracy)


def expected_epochs(accuracies: list[float], patience: int, min_delta: float) -> tuple[int, int]:
    """Return the epoch after which to stop and the best epoch, computed directly from the rule."""
    best = 0
    for epoch, accuracy in enumerate(accuracies):
        if epoch == 0 or accuracy > accuracies[best] + min_delta:
            best = epoch
        if epoch - best >= patience:
            return epoch + 1, best + 1
    return len(accuracies), best + 1


def fit(backend: str, *callbacks: BaseCallback, algo: str = "naive", **spec: Any) -> Any:
    algorithm = build(algo, backend, callbacks=callbacks, **{**SPEC, **spec})
    algorithm.fit()
    return algorithm


@cache
def whole_run(backend: str) -> Epochs:
    """Return the epochs of a run without early stopping."""
    epochs = Epochs()
    fit(backend, epochs)
    return epochs


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (2, 0.01)])
def test_stops_by_the_rule_and_keeps_the_best_weights(backend, patience, min_delta):
    whole, cut = whole_run(backend), Epochs()
    stopping = EarlyStoppingCallback(
        patience=patience, min_delta=min_delta, measured_on="validation"
    )
    fit(backend, stopping, cut)
    # The first task is the same in both runs; the second starts from the weights that were kept.
    stop, best = expected_epochs(whole.accuracy[1], patience, min_delta)
    assert best < stop < 12, "the run must be one that shows something"
    assert len(cut.weights[1]) == stop
    for name, value in whole.weights[1][best - 1].items():
        np.testing.assert_array_equal(cut.at_task_end[1][name], value)
    assert cut.accuracy[1][-1] == whole.accuracy[1][best - 1]


def test_restore_best_false_keeps_the_last_weights():
    whole, cut = whole_run("torch"), Epochs()
    fit("torch", EarlyStoppingCallback(patience=1, restore_best=False), cut)
    stop, _ = expected_epochs(whole.accuracy[1], 1, 0.0)
    for name, value in whole.weights[1][stop - 1].items():
        np.testing.assert_array_equal(cut.at_task_end[1][name], value)


def test_the_best_epoch_is_restored_without_stopping():
    spec = {"training": {**SPEC["training"], "epochs_per_task": 4}}
    for lr in (0.2, 0.5, 0.8):
        whole, cut = Epochs(), Epochs()
        given = {**spec, "optimizer_options": {"lr": lr, "momentum": 0.9}}
        fit("torch", whole, **given)
        fit("torch", EarlyStoppingCallback(patience=9), cut, **given)
        _, best = expected_epochs(whole.accuracy[1], 9, 0.0)
        assert len(cut.weights[1]) == 4
        for name, value in whole.weights[1][best - 1].items():
            np.testing.assert_array_equal(cut.at_task_end[1][name], value)
        if best < 4:
            return
    raise AssertionError("none of the runs was best before its end")


STATES = {
    "ewc": {"fisher_running": True},
    "der": {"observe": "every_epoch"},
    "derpp": {"observe": "every_epoch"},
    "agem": {"memory_policy": "ring"},
    "icarl": {"benchmark": "split_digits", "stream": {"scenario": "class"}},
}
"""Options with which an algorithm carries most; a memory's writes in every epoch, say."""


@pytest.mark.ci
@every_algorithm
@jax_in_full
def test_a_task_ends_as_if_no_epoch_had_followed_the_best(monkeypatch, algo, backend):
    """Weights, optimizer, path integrals, rates, running importances, memory and stored logits."""
    best, accuracies = 2, [0.1, 0.6, 0.3, 0.6]
    monkeypatch.setattr(
        EarlyStoppingCallback, "_accuracy", lambda self, run: accuracies[run.epoch - 1]
    )
    given: dict[str, Any] = {"stream": {}, **STATES.get(algo, {})}
    sizes = {"num_tasks": 2, "samples_per_task": 60}
    if algo == "icarl":
        sizes = {"num_tasks": 5, "samples_per_task": 45}
    given["stream"] = given["stream"] | sizes | {"validation_fraction": 0.1}
    ends = []
    for epochs, callbacks in ((9, [EarlyStoppingCallback(patience=2)]), (best, [])):
        ended = Ends()
        training = {"epochs_per_task": epochs, "reinit_optimizer": "never", "chunk_steps": 4}
        if algo == "stable_sgd":
            del training["reinit_optimizer"]
        spec = {**SPEC, **given, "training": training}
        build(algo, backend, callbacks=[*callbacks, ended], **spec).fit()
        ends.append(ended.arrays)
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[1].items():
        np.testing.assert_array_equal(ends[0][name], value, err_msg=name)


@every_backend
def test_the_matrix_is_of_the_test_data(backend):
    """What was held out is watched alone; for a search it can be measured on instead."""
    stopping = EarlyStoppingCallback(patience=2)
    algorithm = fit(backend, stopping)
    assert (algorithm.measured_on, algorithm.selected_on) == ("test", "validation")
    run = Trainer(algorithm)
    for task in (1, 2):
        assert algorithm.accuracy_matrix[2, task - 1] == run.evaluate(task, "test")
    searched = fit(backend, EarlyStoppingCallback(patience=2, measured_on="validation"))
    assert (searched.measured_on, searched.selected_on) == ("validation", "validation")
    run = Trainer(searched)
    for task in (1, 2):
        assert searched.accuracy_matrix[2, task - 1] == run.evaluate(task, "validation")
    for name, value in weights_of(algorithm).items():  # the same epochs were chosen
        np.testing.assert_array_equal(weights_of(searched)[name], value)
    assert not np.array_equal(searched.accuracy_matrix, algorithm.accuracy_matrix)
    sizes = [algorithm.benchmark.task_size(task, "test") for task in (1, 2)]
    assert run.record().test_sizes != sizes == Trainer(algorithm).record().test_sizes


@pytest.mark.parametrize("mode", ["cumulative", "all_at_once"])
def test_joint_watches_all_tasks_that_it_trains_on(monkeypatch, mode):
    watched = []
    monkeypatch.setattr(
        Trainer, "accuracies", lambda self, tasks, split=None: [watched.append([*tasks]) or 0.5]
    )
    fit("torch", EarlyStoppingCallback(patience=1), algo="joint", mode=mode)
    assert watched == ([[1], [1], [1, 2], [1, 2]] if mode == "cumulative" else [[1, 2]] * 2)


@pytest.mark.ci
@every_backend
@pytest.mark.parametrize("algo", ["icarl", "mcsgd"])
def test_within_a_task_it_watches_the_model_in_training(backend, algo):
    """Accuracies on the task in training change from epoch to epoch, and are not 0."""
    given: dict[str, Any] = {"stream": {"num_tasks": 3, "validation_fraction": 0.2}}
    if algo == "icarl":
        given["benchmark"] = "split_digits"
        given["stream"] |= {"num_tasks": 5, "scenario": "class", "samples_per_task": 100}
    watched = Watched()
    given |= {"training": {"epochs_per_task": 3}, "optimizer_options": {"lr": 0.05}}
    fit(backend, EarlyStoppingCallback(patience=9), watched, algo=algo, **given)
    for task in (2, 3):
        accuracies = watched.accuracy[task]
        assert len(accuracies) == 3 and min(accuracies) > 0.1 and len(set(accuracies)) > 1


@dataclass
class Watched(BaseCallback):
    """Record the held-out accuracy on the task in training after every epoch."""

    accuracy: dict[int, list[float]] = field(default_factory=dict)

    def on_after_epoch(self, run: Run) -> None:
        accuracy = run.evaluate(run.task, "validation")
        self.accuracy.setdefault(run.task, []).append(accuracy)


@pytest.mark.ci
@every_backend
def test_observing_changes_nothing(backend):
    plain = fit(backend)
    looked = fit(backend, EarlyStoppingCallback(patience=99, monitor="seen", restore_best=False))
    for name, value in plain.export_arrays().items():
        assert looked.export_arrays()[name].tobytes() == value.tobytes()


def test_monitor_seen_is_the_mean_over_tasks_so_far():
    algorithm = fit("torch", algo="er")
    run, callback = Trainer(algorithm), EarlyStoppingCallback(monitor="seen")
    assert callback._accuracy(run) == pytest.approx(algorithm.accuracy_matrix[2].mean())
    callback = EarlyStoppingCallback()
    assert callback._accuracy(run) == algorithm.accuracy_matrix[2, 1]


def make(directory: Path, stop_after: int | None) -> Any:
    callbacks = [MetricCallback(), EarlyStoppingCallback(patience=2)]
    callbacks.append(CheckpointCallback(every_steps=1))
    if stop_after is not None:
        callbacks.append(StopAfter(stop_after))
    algorithm = build("er", "torch", callbacks=callbacks, **SPEC)
    algorithm.run_dir, algorithm.config_hash = directory, "abc"
    algorithm.loggers = [LocalLogger(figures=False)]
    return algorithm


@pytest.mark.ci
def test_its_state_survives(tmp_path):
    whole = make(tmp_path / "whole", None)
    whole.fit()
    starts = [0]
    while True:
        start, _ = checkpoint.latest(tmp_path / "cut", config_hash="abc")
        run = make(tmp_path / "cut", 2)
        try:
            run.fit(resume_from=start)
            break
        except Stopped:
            starts.append(run.progress.global_step)
    assert len(starts) > 5
    assert_same_end(run, whole)


def test_needs_validation_data():
    with pytest.raises(ConfigError, match="benchmark.validation_fraction=0: must be > 0"):
        fit("torch", EarlyStoppingCallback(), stream={})


@pytest.mark.ci
@every_backend
def test_split_test_uses_test_data(backend):
    """Each task ends with its best epoch on the test images; held-out data are refused."""
    stream = {"num_tasks": 2, "samples_per_task": 60}
    whole, cut = Epochs(), Epochs()
    fit(backend, whole, stream=stream)
    fit(backend, EarlyStoppingCallback(patience=12, split="test"), cut, stream=stream)
    best = int(np.argmax(whole.accuracy[1]))
    assert best < 11 and len(cut.weights[1]) == 12
    for name, value in whole.weights[1][best].items():
        np.testing.assert_array_equal(cut.at_task_end[1][name], value)
    assert cut.accuracy[1][-1] == max(whole.accuracy[1])
    with pytest.raises(ConfigError, match="validation_fraction=0.1: must be 0 with"):
        fit(backend, EarlyStoppingCallback(split="test"))


@pytest.mark.parametrize(
    "given",
    [{"patience": 0}, {"min_delta": -0.1}, {"monitor": "next"}, {"restore_best": 1}, {"split": 1}],
)
def test_bad_arguments(given):
    with pytest.raises(ConfigError, match="must be"):
        EarlyStoppingCallback(**given)


@pytest.mark.parametrize(
    ("accuracies", "patience", "min_delta", "stop", "best"),
    [
        ([0.5, 0.5, 0.6, 0.6, 0.6, 0.7], 2, 0.0, 5, 3),  # an equal accuracy is not better
        ([0.5, 0.55, 0.6, 0.65, 0.7], 3, 0.12, 5, 4),  # compared with the best, not with the last
        ([0.5, 0.6, 0.7, 0.8], 1, 0.0, 4, 4),
        ([0.5, 0.4, 0.9], 1, 0.0, 2, 1),
        ([0.5, 0.4, 0.9], 3, 0.0, 3, 3),
        ([0.0, 0.0, 0.0], 2, 0.0, 3, 1),
    ],
)
def test_the_rule_by_hand(monkeypatch, accuracies, patience, min_delta, stop, best):
    """Epochs from 1: the last one, and the best one, whose weights are kept."""
    weights = {"params/w": np.zeros(1), "optimizer/m": np.zeros(1)}
    returned = []
    algorithm = SimpleNamespace(
        epochs=lambda task: len(accuracies),
        export_arrays=lambda: {name: value.copy() for name, value in weights.items()},
    )
    run = SimpleNamespace(
        algorithm=algorithm, log=lambda values: None, task=1, epoch=0, stop_task=False
    )
    run.return_to_epoch = lambda epoch, arrays: (returned.append(epoch), weights.update(arrays))
    callback = EarlyStoppingCallback(patience=patience, min_delta=min_delta)
    callback.on_before_task(run)
    for run.epoch, accuracy in enumerate(accuracies, 1):
        weights |= {name: np.full(1, float(run.epoch)) for name in weights}
        monkeypatch.setattr(callback, "_accuracy", lambda run, value=accuracy: value)
        callback.on_after_epoch(run)
        if run.stop_task:
            break
    assert (run.epoch, weights["params/w"].item()) == (stop, best)
    assert weights["optimizer/m"].item() == best  # nothing of later epochs is left
    assert returned == ([best] if best < stop else [])

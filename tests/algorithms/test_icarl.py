"""iCaRL: its loss, exemplars and classifier compared with NumPy in float64, and its options.

Some tests run on PyTorch only: tests/parity compares the twins, including exemplars and means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from experiments import build, every_backend, exported

from seqrun.algorithms.icarl.exemplars import class_means, normalised
from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.training.callback import Run

CLASS = {"benchmark": "split_digits", "stream": {"scenario": "class"}}
SHORT = {"training": {"epochs_per_task": 1}}


def encode(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return the (N, D) float64 features of the tests' MLP for (N, H, W, C) inputs x."""
    h = x.reshape(len(x), -1).astype(np.float64)
    for i in range(2):
        h = np.maximum(h @ weights[f"hidden_{i}/kernel"] + weights[f"hidden_{i}/bias"], 0)
    return h


def outputs(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return the (N, C) logits."""
    return encode(weights, x) @ weights["classifier/kernel"] + weights["classifier/bias"]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def group(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return the arrays whose names start with `name`/, as float64."""
    found = {n: a for n, a in arrays.items() if n.startswith(f"{name}/")}
    return {n.removeprefix(f"{name}/"): a.astype(np.float64) for n, a in found.items()}


@dataclass
class Steps(BaseCallback):
    """Record every step's samples and loss, and both networks before the update."""

    kept: list[dict[str, Any]] = field(default_factory=list)

    def on_after_backward(self, run: Run, step: Any) -> None:
        arrays = exported(run.algorithm.backend, params=step.params, state=step.state)
        x, y, t = (np.asarray(a) for a in step.batch)
        self.kept.append(
            {"task": run.task, "x": x, "y": y, "t": t, "arrays": arrays}
            | {"loss": float(step.loss)}
        )


@dataclass
class Ends(BaseCallback):
    """Record the exported arrays whenever a row of the matrix is measured."""

    rows: list[tuple[int, dict[str, np.ndarray]]] = field(default_factory=list)

    def on_after_validation(self, run: Run) -> None:
        self.rows.append((run.task, run.algorithm.export_arrays()))


def run(backend: str, **spec: Any) -> tuple[Any, list[dict[str, Any]], dict[int, dict]]:
    steps, ends = Steps(), Ends()
    algorithm = build("icarl", backend, callbacks=[steps, ends], **CLASS | SHORT | spec)
    algorithm.fit()
    return algorithm, steps.kept, dict(ends.rows)


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    return {backend: run(backend) for backend in ("torch", "jax")}


def loss_by_hand(step: dict[str, Any], included: np.ndarray, old: np.ndarray) -> float:
    """Return the sum of BCE over `included` classes; `old` classes are distilled."""
    p = sigmoid(outputs(group(step["arrays"], "params"), step["x"]))
    targets = np.eye(p.shape[1])[step["y"]]
    before = group(step["arrays"], "state/params")
    targets[:, old] = sigmoid(outputs(before, step["x"]))[:, old]
    terms = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    return terms[:, included].sum(1).mean()


@pytest.mark.ci
@every_backend
def test_loss_is_bce_of_labels_and_of_the_old_outputs(backend, runs):
    """In task t the loss includes 2 t classes, of which the first 2 (t - 1) are distilled."""
    _, steps, _ = runs[backend]
    for step in steps:
        learned = 2 * step["task"]
        by_hand = loss_by_hand(step, np.s_[:learned], np.s_[: learned - 2])
        assert step["loss"] == pytest.approx(by_hand, rel=2e-5)


def test_the_formula_by_hand():
    """Outputs 0 and ln 3: the first class is distilled with target 0.8, the second is the label."""
    arrays = {
        "hidden_0/kernel": np.eye(1), "hidden_0/bias": np.zeros(1),
        "hidden_1/kernel": np.eye(1), "hidden_1/bias": np.zeros(1),
        "classifier/kernel": np.array([[0.0, np.log(3)]]), "classifier/bias": np.zeros(2),
    }  # fmt: skip
    old = arrays | {"classifier/kernel": np.array([[np.log(4), 0.0]])}
    named = {f"params/{n}": a for n, a in arrays.items()}
    named |= {f"state/params/{n}": a for n, a in old.items()}
    step = {"x": np.ones((1, 1, 1, 1)), "y": np.array([1]), "arrays": named}
    expected = -(0.8 * np.log(0.5) + 0.2 * np.log(0.5)) - np.log(0.75)
    assert loss_by_hand(step, np.s_[:2], np.s_[:1]) == pytest.approx(expected)


@every_backend
def test_old_network_is_that_at_the_end_of_the_last_task(backend, runs):
    """It is neither that of the first task nor the current one."""
    _, steps, rows = runs[backend]
    for step in steps:
        if step["task"] > 1:
            before = group(rows[step["task"] - 1], "params")
            for name, value in group(step["arrays"], "state/params").items():
                np.testing.assert_array_equal(value, before[name])
    last = [s["arrays"]["state/classes"].sum() for s in steps]
    assert sorted(set(last)) == [0, 2, 4, 6, 8]


@every_backend
def test_every_epoch_trains_once_on_each_sample_and_exemplar(backend, runs):
    """The number of steps is known in advance."""
    algorithm, steps, rows = runs[backend]
    assert algorithm.progress.global_step == algorithm.engine.total_steps
    for task in (1, 2, 5):
        seen = np.concatenate([s["x"] for s in steps if s["task"] == task])
        stored = rows[task - 1].get("memory/x", np.zeros((0, 8, 8, 1)))
        assert len(seen) == 45 + len(stored)
        images = {image.tobytes() for image in np.rint(seen * 255).astype(np.uint8)}
        assert {image.tobytes() for image in stored} <= images


def greedy(features: np.ndarray, count: int) -> list[int]:
    """Return the choices of algorithm 4, implemented literally."""
    phi = normalised(features)
    mean, chosen = phi.mean(0), []
    for k in range(1, count + 1):
        rest = [i for i in range(len(phi)) if i not in chosen]
        means = {i: (phi[i] + phi[chosen].sum(0)) / k for i in rest}
        chosen.append(min(rest, key=lambda i: np.linalg.norm(mean - means[i])))
    return chosen


def test_exemplars_are_chosen_by_herding_and_the_first_are_kept():
    """60 exemplars are 30, 15, 10, 7 and 6 of each class after the five tasks."""
    algorithm, _, rows = run("torch", memory_size=60)
    for task, share in enumerate((30, 15, 10, 7, 6), 1):
        y, x = rows[task]["memory/y"], rows[task]["memory/x"]
        data = algorithm.benchmark.task_data(task)
        weights = group(rows[task], "params")
        for c in (2 * task - 2, 2 * task - 1):
            images = data.x[data.y == c]
            order = greedy(encode(weights, images / 255), min(share, len(images)))
            np.testing.assert_array_equal(x[y == c], images[order])
        for c in range(2 * task - 2):
            earlier = rows[task - 1]["memory/x"][rows[task - 1]["memory/y"] == c]
            np.testing.assert_array_equal(x[y == c], earlier[:share])
        assert len(y) <= 60
    assert algorithm.progress.memory_bytes == sum(rows[5][f"memory/{n}"].nbytes for n in "xyt")


@every_backend
def test_prediction_is_the_nearest_mean_of_exemplars(backend, runs):
    """For every measured entry, by distances in float64."""
    algorithm, _, rows = runs[backend]
    for task in range(1, 6):
        weights = group(rows[task], "params")
        phi = normalised(encode(weights, rows[task]["memory/x"] / 255))
        labels = rows[task]["memory/y"]
        means = normalised(np.stack([phi[labels == c].mean(0) for c in range(2 * task)]))
        for j in range(1, task + 1):
            test = algorithm.benchmark.task_data(j, "test")
            features = normalised(encode(weights, test.x / 255))
            distances = np.linalg.norm(features[:, None] - means[None], axis=2)
            accuracy = (distances.argmin(1) == test.y).mean()
            assert algorithm.accuracy_matrix[task, j - 1] == pytest.approx(accuracy)
            own = distances[:, 2 * j - 2 : 2 * j].argmin(1) + 2 * j - 2
            aware = algorithm.progress.accuracy_matrix_task_aware[task, j - 1]
            assert aware == pytest.approx((own == test.y).mean())
        if task < 5:  # a class without exemplars is never predicted
            assert algorithm.accuracy_matrix[task, task] == 0


def test_means_by_hand():
    """(3, 4) and (0, 2) have directions (.6, .8) and (0, 1): their mean points to (1, 3)."""
    features = np.array([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]], np.float32)
    means, known = class_means(features, np.array([1, 1, 3]), 4)
    expected = [[0, 0], np.array([1, 3]) / np.sqrt(10), [0, 0], [1, 0]]
    np.testing.assert_allclose(means, expected, rtol=1e-6)
    assert known.tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("flips", "option", "mirrored"),
    [(False, None, False), (True, None, True), (False, True, True), (True, False, False)],
)
def test_mirrored_means(flips: bool, option: bool | None, mirrored: bool):
    """Of exemplars and their mirror images: by default where training has mirror images."""
    stream = {"scenario": "class", "horizontal_flip": flips, "num_tasks": 2}
    _, _, rows = run("torch", stream=stream, mirrored_means=option)
    x, y = rows[2]["memory/x"], rows[2]["memory/y"]
    weights = group(rows[2], "params")
    directions = normalised(encode(weights, x / 255))
    if mirrored:
        directions = directions + normalised(encode(weights, x[:, :, ::-1] / 255))
    for c in range(4):
        expected = directions[y == c].mean(0)
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(rows[2]["kept/means"][c], expected, atol=1e-5)


def test_within_a_task_means_are_those_of_its_training_samples():
    """With an evaluation after every epoch; exemplars are chosen only at the end of the task."""
    ends = Ends()
    training = {"epochs_per_task": 2, "evaluate_every": "epoch"}
    algorithm = build("icarl", "torch", callbacks=[ends], training=training, **CLASS)
    algorithm.fit()
    within, ended = [arrays for task, arrays in ends.rows if task == 2]
    assert within["memory/y"].max() == 1 and ended["memory/y"].max() == 3
    current = algorithm.benchmark.task_data(2)
    for arrays, known in ((within, current), (ended, None)):
        x = arrays["memory/x"] if known is None else known.x
        y = arrays["memory/y"] if known is None else known.y
        means, _ = class_means(encode(group(arrays, "params"), x / 255), y, 10)
        np.testing.assert_allclose(arrays["kept/means"][2:4], means[2:4], atol=1e-6)


@dataclass
class Watch(BaseCallback):
    """Measure within tasks, and record what a measurement by hand needs."""

    measured: list[tuple[int, list[float], dict[str, np.ndarray]]] = field(default_factory=list)
    before: list[float] = field(default_factory=list)

    def on_before_task(self, run: Run) -> None:
        self.before.append(run.evaluate(1))

    def on_after_epoch(self, run: Run) -> None:
        accuracies = [run.evaluate(task) for task in range(1, run.task + 1)]
        self.measured.append((run.task, accuracies, run.algorithm.export_arrays()))


@pytest.mark.ci
@every_backend
def test_a_measurement_within_a_task_uses_the_means_of_that_moment(backend):
    """Of old exemplars and the task's own samples, after every epoch, by hand in float64."""
    watch = Watch()
    training = {"epochs_per_task": 2}
    algorithm = build("icarl", backend, callbacks=[watch], training=training, **CLASS)
    algorithm.fit()
    assert len(watch.measured) == 10
    for task, accuracies, arrays in watch.measured:
        assert accuracies == algorithm_by_hand(algorithm.benchmark, task, arrays)
    assert len({tuple(a) for task, a, _ in watch.measured if task == 3}) == 2
    np.testing.assert_array_equal(watch.before[1:], algorithm.accuracy_matrix[1:5, 0])


def algorithm_by_hand(benchmark, task: int, arrays: dict[str, np.ndarray]) -> list[float]:
    """Return the accuracy on each task so far by the nearest mean, within `task`."""
    weights, current = group(arrays, "params"), benchmark.task_data(task)
    x, y = current.x, current.y
    if task > 1:
        x = np.concatenate([arrays["memory/x"], x])
        y = np.concatenate([arrays["memory/y"], y])
    means, _ = class_means(encode(weights, x / 255), y, 2 * task)
    accuracies = []
    for j in range(1, task + 1):
        test = benchmark.task_data(j, "test")
        cosines = normalised(encode(weights, test.x / 255)) @ means.T
        accuracies.append(float((cosines.argmax(1) == test.y).mean()))
    return accuracies


def test_untrained_model_is_evaluated_by_its_outputs(runs):
    """Row 0 is the same as for any other algorithm."""
    naive = build("naive", "torch", **CLASS | SHORT)
    naive.fit()
    for algorithm, _, _ in runs.values():
        np.testing.assert_array_equal(algorithm.accuracy_matrix[0], naive.accuracy_matrix[0])


@pytest.mark.ci
def test_options_matter(runs):
    """Each changes what it should, and nothing else."""
    plain, steps, rows = runs["torch"]
    _, mean_steps, _ = run("torch", reduction="mean")
    assert mean_steps[0]["loss"] == pytest.approx(steps[0]["loss"] / 2)
    by_outputs, same_steps, _ = run("torch", classify_by="outputs")
    assert [s["loss"] for s in same_steps] == [s["loss"] for s in steps]
    assert (by_outputs.accuracy_matrix[1:] != plain.accuracy_matrix[1:]).any()
    everything = {"scenario": "class", "softmax_over": "all"}
    _, all_steps, _ = run("torch", stream=everything)
    by_hand = loss_by_hand(all_steps[0], np.s_[:], np.s_[:0])
    assert all_steps[0]["loss"] == pytest.approx(by_hand, rel=1e-5)
    _, _, few = run("torch", memory_size=20)
    assert len(few[5]["memory/y"]) == 20 < len(rows[5]["memory/y"]) <= 200


def test_own_passes_leave_no_trace():
    """Features are computed in eval mode, and mode and statistics stay as they were."""
    algorithm = build("icarl", "torch", backbone={"batch_norm": True}, **CLASS | SHORT)
    algorithm.fit()
    before = {n: s.clone() for n, s in algorithm.stats.items()}
    x = algorithm.benchmark.task_data(1).x
    features = algorithm.features(x)
    assert algorithm.module.training
    assert all((algorithm.stats[n] == s).all() for n, s in before.items())
    np.testing.assert_allclose(algorithm.features(x[:7]), features[:7], atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"benchmark": "rotated_digits"}, "scenario='domain': must be class with algo=icarl"),
        ({"benchmark": "split_digits", "stream": {"scenario": "task"}}, "scenario='task'"),
        (CLASS | {"memory_size": 9}, "memory_size=9: must be at least 10"),
        (CLASS | {"reduction": "max"}, "reduction='max': must be one of sum, mean"),
        (CLASS | {"classify_by": "output"}, "did you mean outputs"),
    ],
)
def test_refusals(spec, message):
    with pytest.raises(ConfigError) as caught:
        build("icarl", "torch", **spec)
    assert message in str(caught.value)


@pytest.mark.ci
def test_it_learns_classes_that_naive_forgets():
    """On all of Split Digits, with 3 epochs, naive only knows the last task."""
    whole = {"scenario": "class", "samples_per_task": None}
    final = {}
    for algo in ("naive", "icarl"):
        training = {"epochs_per_task": 3}
        algorithm = build(
            algo, "torch", benchmark="split_digits", stream=whole, backbone={"width": 64},
            training=training,
        )  # fmt: skip
        final[algo] = algorithm.fit().metrics["average_accuracy"]
    assert final["icarl"] > final["naive"] + 0.4

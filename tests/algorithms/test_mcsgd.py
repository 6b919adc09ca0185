"""MC-SGD: its gradient by hand and by finite differences, every option, and its two models.

The problem solved by hand is a softmax regression in float64, without any code of seqrun.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from algorithms.penalty_by_hand import tiny
from algorithms.side_effects import SETTING as SIDE_EFFECTS
from algorithms.side_effects import jax_in_full
from algorithms.task_ends import Arrays, TaskRecorder, imported, part
from comparison import assert_close, assert_same_arrays, assert_same_run
from experiments import BACKENDS, build, every_backend, run, shared_run
from tiny import cross_entropies, sample_gradients, softmax

from seqrun.algorithms.mcsgd.line import all_samples, line_points, minibatch, minibatches, side
from seqrun.benchmarks import Dataset
from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.training.divergence import TrainingDiverged

NAMES = ("classifier/kernel", "classifier/bias")
# A smaller learning rate for BatchNorm: see tests/parity/cases.py.
BATCH_NORM = {
    "backbone": {"batch_norm": True}, "optimizer_options": {"lr": 0.01}, "lmc_lr": 0.005,
}  # fmt: skip


def shifted(origin: Arrays, end: Arrays, a: float) -> Arrays:
    """Return origin + a (end - origin)."""
    return {n: origin[n] + a * (end[n] - origin[n]) for n in NAMES}


class Problem:
    """The two lines of a task, in float64, from the arrays that the run exported.

    Attributes:
        w_bar, w_hat: the known ends of the lines.
        sides: origin, inputs and labels of memory and of the current task.
    """

    def __init__(self, before: Arrays, after: Arrays, current: Dataset, past: np.ndarray) -> None:
        """Read the last w_bar, the new w_hat, and the stored samples that `past` selects."""
        self.w_bar = {n: before[f"kept/w_bar/{n}"].astype(float) for n in NAMES}
        self.w_hat = {n: after[f"params/{n}"].astype(float) for n in NAMES}
        memory = Dataset(*(after[f"memory/{field}"][past] for field in "xyt"))
        self.sides = [
            (origin, data.x.reshape(len(data.y), -1) / 255.0, data.y)
            for origin, data in ((self.w_bar, memory), (self.w_hat, current))
        ]

    def losses(self, w: Arrays, a: float, which: int) -> np.ndarray:
        """Return each sample's loss at a point of a line."""
        origin, x, y = self.sides[which]
        point = shifted(origin, w, a)
        return cross_entropies(point[NAMES[0]], point[NAMES[1]], x, y)

    def gradients(self, w: Arrays, a: float, which: int) -> Arrays:
        """Return each sample's gradient at a point of a line, without the chain rule's factor."""
        origin, x, y = self.sides[which]
        point = shifted(origin, w, a)
        return sample_gradients(point[NAMES[0]], point[NAMES[1]], x, y)


def authors_mean(values: np.ndarray, size: int) -> np.ndarray:
    """Return the sum of the means of minibatches, divided by the number of samples."""
    parts = np.split(values, range(size, len(values), size))
    return sum(p.mean(0) for p in parts) / len(values)


def by_hand(
    problem: Problem,
    *,
    gradient: str,
    loss: str,
    lr: float,
    momentum: float,
    epochs: int,
    n: int,
    position: float,
    weight: float,
    size: int,
) -> Arrays:
    """Minimise with full-batch steps, as in the paper or as in the authors' code."""
    w = shifted(problem.w_bar, problem.w_hat, position)
    velocity = {name: np.zeros_like(v) for name, v in w.items()}
    reduced = (lambda v: v.mean(0)) if loss == "mean" else (lambda v: authors_mean(v, size))
    for _ in range(epochs):
        total = {name: np.zeros_like(v) for name, v in w.items()}
        for which, factor in enumerate((1.0, weight)):
            grad = {name: np.zeros_like(v) for name, v in w.items()}  # .grad of the authors' code
            for k in range(n + 1):
                for name, g in problem.gradients(w, k / n, which).items():
                    if gradient == "authors":
                        grad[name] = grad[name] + factor * reduced(g)  # backward, never zeroed
                        total[name] += grad[name]
                    else:
                        total[name] += factor * reduced(g) * (k / n if gradient == "paper" else 1)
        for name in w:
            velocity[name] = momentum * velocity[name] + total[name]
            w[name] = w[name] - lr * velocity[name]
    return w


OPTIONS = {
    "gradient": "lmc_gradient", "loss": "lmc_loss", "lr": "lmc_lr", "momentum": "lmc_momentum",
    "epochs": "lmc_epochs", "n": "lmc_line_samples", "position": "lmc_init_position",
    "weight": "lmc_current_weight", "size": "lmc_batch_size",
}  # fmt: skip
SETTING = {
    "gradient": "paper", "loss": "mean", "lr": 0.1, "momentum": 0.0, "epochs": 3, "n": 4,
    "position": 0.3, "weight": 1.0, "size": 3,
}  # fmt: skip


def recorded(backend: str, setting: dict, **options) -> tuple[TaskRecorder, object]:
    """Run the softmax regression; return the recorder of its tasks, and the algorithm."""
    tasks = TaskRecorder()
    keys = {OPTIONS[name]: value for name, value in setting.items()}
    keys |= {"per_task_memory_samples": 4, "lmc_current_samples": None} | options
    return tasks, tiny("mcsgd", backend, tasks, lr=0.3, **keys)


def problems(tasks: TaskRecorder, algorithm, includes_current: bool = False):
    """Yield the problem of each task from the second on, and the w_bar of the run."""
    for task in (2, 3):
        before, after = tasks.ends[task - 2 : task]
        past = after["memory/t"] < (task if includes_current else task - 1)
        found = {n: after[f"kept/w_bar/{n}"] for n in NAMES}
        yield Problem(before, after, algorithm.benchmark.task_data(task), past), found


@jax_in_full
@pytest.mark.parametrize("loss", ["mean", "authors"])
@pytest.mark.parametrize("gradient", ["paper", "unscaled", "authors"])
def test_full_batch_steps_by_hand(backend: str, gradient: str, loss: str):
    """Three steps with momentum after tasks 2 and 3, with 4 and 8 stored and 7 current samples."""
    setting = SETTING | {"gradient": gradient, "loss": loss, "momentum": 0.5, "weight": 0.65}
    tasks, algorithm = recorded(backend, setting)
    for problem, found in problems(tasks, algorithm):
        expected = by_hand(problem, **setting)
        for name in NAMES:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_papers_gradient_is_that_of_the_sum_over_the_line():
    """Central differences of the objective contain the factor a of the chain rule."""
    setting = SETTING | {"epochs": 1, "weight": 0.65}
    tasks, algorithm = recorded("torch", setting)
    n, lr = setting["n"], setting["lr"]
    for problem, found in problems(tasks, algorithm):
        start = shifted(problem.w_bar, problem.w_hat, setting["position"])

        def objective(w: Arrays, problem=problem) -> float:
            points = np.arange(n + 1) / n
            memory = sum(problem.losses(w, a, 0).mean() for a in points)
            return memory + 0.65 * sum(problem.losses(w, a, 1).mean() for a in points)

        for name in NAMES:
            slope = np.empty_like(start[name])
            for index in np.ndindex(slope.shape):
                ends = []
                for h in (1e-5, -1e-5):
                    moved = start | {name: start[name].copy()}
                    moved[name][index] += h
                    ends.append(objective(moved))
                slope[index] = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose((start[name] - found[name]) / lr, slope, atol=5e-5)


@jax_in_full
def test_minibatch_steps_by_hand(backend: str):
    """Two epochs of 3 steps, on 3, 3 and 1 current samples and 3 of memory each."""
    setting = SETTING | {"epochs": 2, "momentum": 0.5, "weight": 0.65, "loss": "authors"}
    tasks, algorithm = recorded(backend, setting, lmc_steps="minibatch")
    for task, (problem, found) in zip((2, 3), problems(tasks, algorithm), strict=True):
        w = shifted(problem.w_bar, problem.w_hat, setting["position"])
        velocity = {name: np.zeros_like(v) for name, v in w.items()}
        stored = len(problem.sides[0][2])
        rng = algorithm.random.generator("memory", task, 0, 1)
        for _ in range(2):
            order = rng.permutation(7)
            for rows in (order[:3], order[3:6], order[6:]):
                drawn = rng.choice(stored, 3, replace=False)
                for name in NAMES:
                    step = 0.0
                    for k in range(5):
                        a = k / 4
                        memory = problem.gradients(w, a, 0)[name][drawn].mean(0) / stored
                        current = problem.gradients(w, a, 1)[name][rows].mean(0) / 7
                        step = step + a * (memory + 0.65 * current)
                    velocity[name] = 0.5 * velocity[name] + step
                w = {name: w[name] - 0.1 * velocity[name] for name in NAMES}
        for name in NAMES:
            np.testing.assert_allclose(found[name], w[name], rtol=1e-5, atol=1e-5)


@pytest.mark.ci
@every_backend
def test_memory_of_the_current_task_too(backend: str):
    """As in the authors' code: 8 and 12 stored samples after tasks 2 and 3."""
    tasks, algorithm = recorded(backend, SETTING, lmc_memory_includes_current=True)
    for stored, (problem, found) in zip((8, 12), problems(tasks, algorithm, True), strict=True):
        assert len(problem.sides[0][2]) == stored
        expected = by_hand(problem, **SETTING)
        for name in NAMES:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.ci
@every_backend
def test_w_bar_is_evaluated(backend: str):
    """The accuracies of every row are those of the stored w_bar, by hand; w_bar_1 = w_hat_1."""
    tasks, algorithm = recorded(backend, SETTING | {"lr": 1.0, "weight": 0.0})
    differ = 0
    for row, end in enumerate(tasks.ends, 1):
        for task in range(1, min(row + 1, 3) + 1):
            test = algorithm.benchmark.task_data(task, "test")
            x = test.x.reshape(len(test.y), -1) / 255.0
            right = {}
            for model in ("params/", "kept/w_bar/"):
                w = part(end, model)
                right[model] = (softmax(x @ w[NAMES[0]] + w[NAMES[1]]).argmax(1) == test.y).mean()
            assert algorithm.accuracy_matrix[row, task - 1] == right["kept/w_bar/"]
            differ += right["params/"] != right["kept/w_bar/"]
    assert differ
    assert_same_arrays(part(tasks.ends[0], "kept/w_bar/"), part(tasks.ends[0], "params/"), 0.0)


@pytest.mark.ci
@every_backend
def test_within_a_task_w_hat_is_evaluated(backend: str):
    """After every epoch the accuracies are those of naive; at the task's end those of w_bar."""

    @dataclass
    class Watch(BaseCallback):
        within: list = field(default_factory=list)

        def on_after_epoch(self, run):
            self.within.append([run.evaluate(task) for task in (1, 2, 3)])

        def on_after_task(self, run):  # w_bar has been found
            self.within.append([run.evaluate(task) for task in (1, 2, 3)])

    watched, traces = {}, {}
    for algo in ("mcsgd", "naive"):
        watched[algo] = Watch()
        spec = {"training": {"epochs_per_task": 3}, "optimizer_options": {"lr": 0.1}}
        traces[algo] = run(algo, backend, callbacks=[watched[algo]], **spec)
    by_algo = {algo: np.array(watch.within).reshape(3, 4, 3) for algo, watch in watched.items()}
    np.testing.assert_array_equal(by_algo["mcsgd"][:, :3], by_algo["naive"][:, :3])
    for task in (1, 2, 3):
        ended = by_algo["mcsgd"][task - 1, 3, :task]
        np.testing.assert_array_equal(ended, traces["mcsgd"].matrix[task, :task])
    assert (by_algo["mcsgd"][1:, 3] != by_algo["naive"][1:, 3]).any()


@pytest.mark.ci
@jax_in_full
def test_w_hat_is_naive(backend: str):
    """To the bit on PyTorch: the minimisation does not affect statistics, mode or generators."""
    naive = shared_run("naive", backend, **SIDE_EFFECTS)
    trace = run("mcsgd", backend, **SIDE_EFFECTS, lmc_lr=0.005)
    tolerance = 0.0 if backend == "torch" else 1e-5
    assert_close("losses", trace.losses, naive.losses, tolerance)
    live = {n: a for n, a in trace.arrays.items() if n in naive.arrays}
    assert_same_arrays(live, naive.arrays, tolerance)
    assert_close("first task", trace.matrix[:2], naive.matrix[:2], tolerance)
    apart = abs(trace.arrays["kept/w_bar/classifier/kernel"] - live["params/classifier/kernel"])
    assert apart.max() > 1e-3
    if backend == "torch":
        assert trace.algorithm.module.training


@jax_in_full
def test_statistics_are_those_of_w_hat(backend: str):
    """Those after the task are used for the lines and for evaluation; later tasks change them."""
    tasks = TaskRecorder()
    run("mcsgd", backend, callbacks=[tasks], **BATCH_NORM)
    for end in tasks.ends:
        assert_same_arrays(part(end, "kept/stats/"), part(end, "stats/"), 0.0)
    means = [end["kept/stats/norm_0/mean"] for end in tasks.ends]
    assert abs(means[0] - means[1]).max() > 1e-3 < abs(means[1] - means[2]).max()


BASE = {"optimizer_options": {"lr": 0.1}, "training": {"epochs_per_task": 3}}


@pytest.mark.ci
@pytest.mark.parametrize(
    "changed",
    [
        {"per_task_memory_samples": 11},
        {"memory_policy": "random"},
        {"lmc_lr": 0.04},
        {"lmc_momentum": 0.5},
        {"lmc_epochs": 4},
        {"lmc_steps": "minibatch"},
        {"lmc_line_samples": 6},
        {"lmc_init_position": 0.6},
        {"lmc_current_samples": 50},
        {"lmc_current_weight": 0.9},
        {"lmc_gradient": "unscaled"},
        {"lmc_gradient": "authors"},
        {"lmc_loss": "authors"},
        {"lmc_memory_includes_current": True},
        {"lmc_steps": "minibatch", "lmc_batch_size": 12},
        {"lmc_loss": "authors", "lmc_batch_size": 12},
    ],
    ids=str,
)
def test_every_option_affects_w_bar_only(changed: dict):
    """Each changes w_bar, while w_hat keeps its bits."""
    *basis, last = changed
    spec = BASE | {"lmc_epochs": 3}
    base = shared_run("mcsgd", "torch", **spec | {name: changed[name] for name in basis})
    other = run("mcsgd", "torch", **spec | changed)
    live = {n for n in base.arrays if n.startswith(("params", "stats", "optimizer"))}
    assert_same_arrays({n: other.arrays[n] for n in live}, {n: base.arrays[n] for n in live}, 0.0)
    apart = [abs(other.arrays[n] - a).max() for n, a in base.arrays.items() if "w_bar" in n]
    assert max(apart) > 1e-5, last


@pytest.mark.ci
def test_every_epoch_counts():
    """Each epoch adds its steps and decreases the objective."""
    losses = []
    for epochs in (1, 4, 16):
        tasks, algorithm = recorded("torch", SETTING | {"epochs": epochs})
        assert algorithm.progress.gradient_steps == algorithm.progress.global_step + 2 * epochs
        (problem, found), _ = problems(tasks, algorithm)
        points = np.arange(5) / 4
        losses.append(sum(problem.losses(found, a, i).mean() for a in points for i in (0, 1)))
    assert losses[0] > losses[1] > losses[2]
    _, algorithm = recorded("torch", SETTING, lmc_steps="minibatch")
    progress = algorithm.progress
    assert progress.gradient_steps == progress.global_step + 2 * SETTING["epochs"] * 3


def test_memory_keeps_its_budget():
    """10 samples of each task, 30 in all, with their number of bytes."""
    tasks = TaskRecorder()
    algorithm = run("mcsgd", "torch", callbacks=[tasks]).algorithm
    for task, end in enumerate(tasks.ends, 1):
        assert np.array_equal(np.bincount(end["memory/t"]), np.full(task, 10))
        assert len(np.unique(end["memory/y"][-10:])) == 10
        images = algorithm.benchmark.task_data(task).x
        assert all((images == x).all((1, 2, 3)).any() for x in end["memory/x"][-10:])
    assert algorithm.progress.memory_bytes == 30 * (64 + 4 + 4)


def test_line_points():
    """Positions k/n, and the coefficients of the three gradients."""
    for name, coefficients in (
        ("paper", [0, 0.25, 0.5, 0.75, 1]),
        ("unscaled", [1, 1, 1, 1, 1]),
        ("authors", [5, 4, 3, 2, 1]),
    ):
        line = line_points(name, 4)
        assert line.positions.tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert line.coefficients.tolist() == coefficients


def test_weights_of_the_two_losses():
    """Five samples in minibatches of 2, 2 and 1."""
    rows, weights = all_samples(5, 2, "mean")
    assert rows.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(weights, 0.2)
    _, weights = all_samples(5, 2, "authors")
    np.testing.assert_allclose(weights, [0.1, 0.1, 0.1, 0.1, 0.2])
    np.testing.assert_allclose(minibatch(np.array([3, 1]), 5, "mean")[1], 0.5)
    np.testing.assert_allclose(minibatch(np.array([3, 1]), 5, "authors")[1], 0.1)


def test_minibatches_cover_the_current_samples_in_every_pass():
    """Memory is drawn without replacement, all of it if it has fewer samples."""
    memory, current = minibatches(2, 7, 3, 2, "mean", np.random.default_rng(0))
    assert [len(rows) for rows, _ in current] == [3, 3, 1] * 2
    passes = [np.concatenate([rows for rows, _ in current[i : i + 3]]) for i in (0, 3)]
    assert [sorted(rows) for rows in passes] == [list(range(7))] * 2
    assert not np.array_equal(*passes)
    assert all(sorted(rows) == [0, 1] for rows, _ in memory)


def test_padding_of_sides_has_no_weight():
    """Five rows in segments of two, with a capacity of nine samples and eight rows."""
    data = Dataset(np.ones((5, 1, 1, 1), np.uint8), np.arange(5, dtype=np.int32), np.ones(5, int))
    packed = side(data, [all_samples(5, 2, "mean")], capacity=9, step_capacity=8, segment_size=2)
    assert packed.x.shape == (9, 1, 1, 1) and packed.y.shape == packed.t.shape == (9,)
    assert packed.rows.shape == packed.weights.shape == (1, 4, 2)
    assert packed.rows.ravel().tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    np.testing.assert_allclose(packed.weights.ravel(), [0.2] * 5 + [0] * 3)
    assert packed.segments == 3


full = pytest.mark.full


@pytest.mark.full
@pytest.mark.parametrize(
    ("spec", "tolerance"),
    [
        # 20 samples per segment: several segments of different sizes, and padding.
        pytest.param({"lmc_loss": "authors", "lmc_gradient": "authors", "lmc_lr": 0.02}
                     | {"stream": {"eval_batch_size": 20}}, 1e-5, marks=full),
        ({"lmc_steps": "minibatch", "lmc_momentum": 0.5, "lmc_lr": 0.01, "lmc_epochs": 2}
         | {"lmc_batch_size": 16, "lmc_current_samples": 37, "lmc_memory_includes_current": True},
         1e-5),
        pytest.param({"lmc_steps": "minibatch", "lmc_epochs": 2} | BATCH_NORM, 1e-4, marks=full),
        pytest.param({"lmc_gradient": "unscaled", "memory_policy": "random"}, 1e-5, marks=full),
        pytest.param({"benchmark": "split_digits", "stream": {"scenario": "task"}}
                     | {"lmc_current_samples": None}, 1e-5, marks=full),
        pytest.param({"benchmark": "split_digits", "stream": {"scenario": "class"}}, 1e-5,
                     marks=full),
    ],
    ids=["authors", "minibatch", "batch_norm", "unscaled", "task", "class"],
)  # fmt: skip
def test_twins_agree(spec: dict, tolerance: float):
    """At every step, in w_bar, memory and matrix, with the tolerances of tests/parity/cases.py."""
    by_torch, by_jax = (run("mcsgd", backend, stepped=True, **spec) for backend in BACKENDS)
    assert_same_run(by_jax, by_torch, tolerance)


@pytest.mark.ci
def test_one_compiled_program_serves_all_tasks():
    """Whatever the number of stored samples."""
    algorithm = run("mcsgd", "jax", **BATCH_NORM).algorithm
    assert len([key for key in algorithm.engine._programs if key[0] == "lmc"]) == 1


@pytest.mark.ci
@pytest.mark.parametrize(("written", "read"), [BACKENDS, BACKENDS[::-1]])
def test_exported_arrays_can_be_imported_on_either_backend(written: str, read: str):
    """Both models, statistics and memory."""
    trace = shared_run("mcsgd", written, **BATCH_NORM)
    assert_same_arrays(imported("mcsgd", read, trace.arrays, **BATCH_NORM), trace.arrays, 0.0)


@pytest.mark.ci
def test_it_forgets_less_than_naive():
    """In the mean over tasks and two seeds."""
    spec = {"training": {"epochs_per_task": 15}, "optimizer_options": {"lr": 0.1}}
    means = [
        np.mean([run(algo, "torch", seed=s, **spec).matrix[3].mean() for s in (0, 1)])
        for algo in ("naive", "mcsgd")
    ]
    assert means[1] > means[0] + 0.1


@pytest.mark.ci
@every_backend
def test_divergence_is_reported(backend: str):
    """A w_bar that is not finite ends the run."""
    with pytest.raises(TrainingDiverged, match="w_bar is not finite after task"):
        recorded(backend, SETTING | {"lr": 1e38, "epochs": 3})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("per_task_memory_samples", 0, "an integer >= 1"),
        ("memory_policy", "reservoir", "one of class_balanced, random"),
        ("lmc_lr", 0.0, "a number > 0"),
        ("lmc_momentum", 1.0, r"a number in \[0, 1\)"),
        ("lmc_epochs", 0, "an integer >= 1"),
        ("lmc_steps", "fullbatch", "one of full_batch, minibatch"),
        ("lmc_batch_size", 0, "an integer >= 1"),
        ("lmc_line_samples", 0, "an integer >= 1"),
        ("lmc_init_position", 1.5, r"a number in \[0, 1\]"),
        ("lmc_current_samples", 0, "an integer >= 1"),
        ("lmc_current_weight", -1.0, "a number >= 0"),
        ("lmc_gradient", "author", "one of paper, unscaled, authors"),
        ("lmc_loss", "sum", "one of mean, authors"),
        ("lmc_memory_includes_current", 1, "true or false"),
    ],
)
def test_refusals(key: str, value, allowed: str):
    """They name the key, the value and what is allowed."""
    with pytest.raises(ConfigError, match=f"{key}={value!r}: must be {allowed}"):
        build("mcsgd", "torch", **{key: value})

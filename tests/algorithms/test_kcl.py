"""KCL: kernel regression and gradients compared with float64, coresets, and every option."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from algorithms.replay_by_hand import PlanRecorder
from comparison import assert_same_arrays
from experiments import StepRecorder, build, every_backend, jax_in_full, run, shared_run

from seqrun.checks import ConfigError
from seqrun.training.trainer import Trainer

SCALARS = ("params/lambda", "params/gamma", "params/beta")
SMALL: dict[str, Any] = {
    "stream": {"num_tasks": 2, "samples_per_task": 60},
    "training": {"epochs_per_task": 1},
    "optimizer_options": {"lr": 0.02},
    "coreset_per_class": 2,
    "num_bases": 32,
    "tau": 0.01,
}


def kernels(backend: str) -> tuple[Any, Any]:
    """Return the kernel formulas of a backend, and its function `asarray`."""
    array = import_module({"torch": "torch", "jax": "jax.numpy"}[backend]).asarray
    return import_module(f"seqrun.formulas.kernels.{backend}"), array


# ---- formulas


@pytest.mark.ci
@every_backend
def test_kernels_in_numbers(backend: str):
    """a = (1, 0), (0, 2); b = (1, 1)."""
    formulas, array = kernels(backend)
    a, b = array([[1.0, 0.0], [0.0, 2.0]]), array([[1.0, 1.0]])
    expected = {
        "linear": [[1.0], [2.0]],
        "rff": [[1.0], [2.0]],
        "poly": [[3.375], [8.0]],  # (1/2 + 1)^3, (2/2 + 1)^3
        "rbf": [[np.exp(-0.25)], [np.exp(-0.5)]],  # squared distances 1 and 2
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(np.asarray(formulas.gram(kind, a, b)), values, rtol=1e-6)


@every_backend
def test_fourier_features_make_the_gaussian_kernel(backend: str):
    """With omega ~ N(0, I): psi(x) psi(y)^T -> exp(-|x - y|^2 / 2), error of order 1/sqrt(D)."""
    formulas, array = kernels(backend)
    rng = np.random.default_rng(0)
    x = rng.random((4, 3), dtype=np.float32)
    bases = rng.standard_normal((20000, 3), dtype=np.float32)
    phase = rng.uniform(0, 2 * np.pi, 20000).astype(np.float32)
    psi = np.asarray(formulas.fourier_features(array(x), array(bases), array(phase)))
    first = 0.01 * np.cos(bases[0] @ x[0] + phase[0])  # sqrt(2 / 20000) = 0.01
    np.testing.assert_allclose(psi[0, 0], first, rtol=1e-4)
    exact = np.exp(-0.5 * ((x[:, None] - x) ** 2).sum(2))
    np.testing.assert_allclose(psi @ psi.T, exact, atol=0.03)


@pytest.mark.ci
@every_backend
def test_ridge_regression_agrees_with_float64(backend: str):
    """(K + ridge I)^-1 Y with NumPy's inverse; NaN if the matrix is not positive definite."""
    formulas, array = kernels(backend)
    rng = np.random.default_rng(1)
    rows, targets = rng.random((20, 8)), np.eye(3)[rng.integers(0, 3, 20)]
    kernel = rows @ rows.T
    weights = formulas.ridge_weights(
        array(kernel.astype(np.float32)), array(np.float32(0.11)), array(targets.astype(np.float32))
    )
    exact = np.linalg.inv(kernel + 0.11 * np.eye(20)) @ targets
    np.testing.assert_allclose(np.asarray(weights), exact, rtol=1e-3, atol=1e-3)
    identity = np.eye(2, dtype=np.float32)
    bad = formulas.ridge_weights(array(-identity), array(np.float32(0.1)), array(identity))
    assert np.isnan(np.asarray(bad)).any()


@jax_in_full
def test_divergence_by_hand(backend: str):
    """KL(N(1, 4) || N(0, 1)) = (4 + 1 - 1)/2 - ln 2; KL(N(0, 1) || N(2, 4)) = ln 2 + 5/8 - 1/2."""
    formulas, array = kernels(backend)
    log4 = float(np.log(4.0))
    q = array([1.0, 0.0]), array([log4, 0.0])
    p = array([0.0, 2.0]), array([0.0, log4])
    expected = (2 - np.log(2)) + (np.log(2) + 0.125)
    np.testing.assert_allclose(float(formulas.gaussian_divergence(*q, *p)), expected, rtol=1e-6)
    assert float(formulas.gaussian_divergence(*q, *q)) == 0


# ---- a step


def dense(w: dict[str, np.ndarray], layer: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{layer}/kernel"] + w[f"{layer}/bias"]


def amortised(w: dict[str, np.ndarray], network: str, x: np.ndarray) -> np.ndarray:
    for i in range(3):
        x = dense(w, f"{network}/linear_{i}", np.where(x > 0, x, np.expm1(x)) if i else x)
    return x


def encoded(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    for i in range(2):
        x = np.maximum(dense(w, f"encoder/hidden_{i}", x), 0)
    return x


def scaled(x: np.ndarray, coreset: np.ndarray, scaling: str) -> np.ndarray:
    if scaling == "l2":
        return x / np.linalg.norm(x, axis=1, keepdims=True)
    of = x if scaling == "authors" else coreset
    return (x - of.min()) / (of.max() - of.min())


def by_hand(
    w: dict[str, np.ndarray],
    x: np.ndarray,
    coreset: np.ndarray,
    labels: np.ndarray,
    task: int,
    kernel_type: str,
    scaling: str,
    noise: np.ndarray | None,
    phase: np.ndarray | None,
) -> tuple[np.ndarray, float]:
    """Return logits and KL(q || p) in float64, with a matrix inverse."""
    fx, fc = encoded(w, x), encoded(w, coreset)
    fx, fc = scaled(fx, fc, scaling), scaled(fc, fc, scaling)
    divergence = 0.0
    if kernel_type == "rff":
        parts = "mean", "log_variance"
        mu, nu = (amortised(w, f"posterior/{part}", fc.mean(0)) for part in parts)
        m0, n0 = (amortised(w, f"prior/{part}", fx.mean(0)) for part in parts)
        divergence = 0.5 * (n0 - nu + (np.exp(nu) + (mu - m0) ** 2) / np.exp(n0) - 1).sum()
        omega = mu + np.exp(nu / 2) * noise
        fx, fc = (np.sqrt(2 / len(omega)) * np.cos(f @ omega.T + phase) for f in (fx, fc))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if kernel_type == "rbf":
            return np.exp(-0.25 * ((a[:, None] - b) ** 2).sum(2))
        return (a @ b.T / a.shape[1] + 1) ** 3 if kernel_type == "poly" else a @ b.T

    ridge = (abs(w["lambda"][task]) + 0.01) * np.eye(len(fc))
    solution = np.linalg.inv(kernel(fc, fc) + ridge) @ np.eye(10)[labels]
    return w["gamma"][task] * kernel(fx, fc) @ solution + w["beta"][task], divergence


@pytest.mark.parametrize(
    ("kernel_type", "scaling"),
    [
        ("rff", "min_max"), ("rff", "authors"), ("rff", "l2"),
        ("rbf", "l2"), ("linear", "min_max"), ("poly", "l2"),
    ],
)  # fmt: skip
def test_step_is_as_by_hand(kernel_type: str, scaling: str):
    """The first step's loss in float64, and its gradients by differences along random directions.

    The gradients flow through the coreset, its range, the solution, both networks and the scalars.
    """
    plan, steps = PlanRecorder(), StepRecorder()
    spec = SMALL | {"kernel_type": kernel_type, "scaling": scaling, "lambda_init": 0.3}
    trace = run("kcl", "torch", callbacks=[plan, steps], **spec)
    start = build("kcl", "torch", **spec)
    start.benchmark.prepare(start.random)
    start.engine.start()
    w = {n: a.astype(np.float64) for n, a in start.initial_weights().items()}
    row, dataset = plan.rows[0], plan.datasets[0]
    x = dataset.x.reshape(len(dataset.y), -1) / 255.0
    noise = row["noise"].astype(np.float64) if "noise" in row else None
    phase = trace.arrays.get("state/phase")
    assert (noise is None) == (phase is None) == (kernel_type != "rff")
    given = dataset.y[row["coreset"]], 0, kernel_type, scaling, noise, phase
    y = dataset.y[row["index"]]

    def losses(w: dict[str, np.ndarray]) -> tuple[float, float]:
        logits, divergence = by_hand(w, x[row["index"]], x[row["coreset"]], *given)
        exponential = np.exp(logits - logits.max(1, keepdims=True))
        p = exponential / exponential.sum(1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y]).mean()
        return loss, loss + spec["tau"] * divergence

    np.testing.assert_allclose(trace.losses[0], losses(w)[0], rtol=1e-5)
    recorded = steps.steps[0]
    for name in w:
        direction = np.random.default_rng(len(name)).standard_normal(w[name].shape)
        sides = [losses(w | {name: w[name] + h * direction})[1] for h in (1e-6, -1e-6)]
        slope = (sides[0] - sides[1]) / 2e-6
        found = (recorded[f"gradients/{name}"] * direction).sum()
        np.testing.assert_allclose(found, slope, rtol=1e-3, atol=2e-4, err_msg=name)


def test_loss_is_the_cross_entropy_alone():
    """Tau changes later steps, never the loss of the first."""
    a, b = (run("kcl", "torch", **SMALL | {"tau": tau}) for tau in (0.0, 10.0))
    assert a.losses[0] == b.losses[0]
    assert abs(a.losses - b.losses).max() > 1e-3


# ---- scalars


@jax_in_full
def test_scalars_are_registered(backend: str):
    """There is one per task; they are exported and trained."""
    arrays = shared_run("kcl", backend, **SMALL).arrays
    for name, initial in zip(SCALARS, (1.0, 1.0, 0.0), strict=True):
        assert arrays[name].shape == (2,)
        if name != "params/beta":
            assert (arrays[name] != initial).all()


def test_each_task_trains_its_own_scalars():
    """Those of another task keep their bits."""
    trace = run("kcl", "torch", stepped=True, **SMALL)
    first = trace.steps[len(trace.losses) // 2 - 1]
    initial = {"params/lambda": np.float32(0.1), "params/gamma": 1}
    for name in ("params/lambda", "params/gamma"):
        assert first[name][0] != initial[name] == first[name][1]
        assert trace.arrays[name][0] == first[name][0], f"{name} of task 1 changed in task 2"


@jax_in_full
@pytest.mark.parametrize(
    "optimizer",
    [
        {"optimizer_options": {"lr": 0.02, "weight_decay": 0.1}},
        {"optimizer_options": {"lr": 0.02, "momentum": 0.9}},
        {"optimizer": "adam", "optimizer_options": {"lr": 0.01, "weight_decay": 0.1}},
    ],
    ids=["weight_decay", "momentum", "adam"],
)
def test_the_optimizer_moves_the_scalars_of_the_task_alone(backend: str, optimizer: dict):
    """To the bit, whatever it keeps from step to step."""
    never = {"training": {"epochs_per_task": 1, "reinit_optimizer": "never"}, "lambda_init": 1.0}
    trace = run("kcl", backend, stepped=True, **SMALL | never | optimizer)
    half = len(trace.losses) // 2
    for name in ("params/lambda", "params/gamma"):
        values = np.array([step[name] for step in trace.steps])
        assert (values[:half, 1] == 1).all(), f"{name} of task 2 moved in task 1"
        assert (values[half:, 0] == values[half - 1, 0]).all(), f"{name} of task 1 moved in task 2"
        assert (values[:half, 0] != 1).all() and (values[half:, 1] != 1).all()


def test_beta_does_not_affect_predictions():
    """It shifts the logits of all classes alike, so its gradient is 0, without rounding errors."""
    trace = run("kcl", "torch", stepped=True, **SMALL)
    assert not any(step["gradients/beta"].any() for step in trace.steps)
    assert not trace.arrays["params/beta"].any()


# ---- coresets


def test_coresets_are_balanced_set_aside_and_within_budget():
    """2 of each of 10 classes of the task, none of which is trained on."""
    plan = PlanRecorder()
    trace = run("kcl", "torch", callbacks=[plan], **SMALL)
    algorithm = trace.algorithm
    assert len(trace.arrays["memory/y"]) == 40
    for task in (1, 2):
        coreset, data = algorithm.coresets[task], algorithm.training_data(task)
        assert (np.bincount(coreset.y) == 2).all()
        assert (coreset.t == task - 1).all()
        every = algorithm.benchmark.task_data(task, "train")
        assert len(data.y) == len(every.y) - 20 == algorithm.training_size(task) == 40
        together = np.concatenate([data.x, coreset.x]).reshape(60, -1)
        assert sorted(map(bytes, together)) == sorted(map(bytes, every.x.reshape(60, -1)))
    indices = np.concatenate([row["index"] for row in plan.rows])
    assert indices.max() < 40 <= plan.rows[0]["coreset"].min()
    stored = sum(trace.arrays[f"memory/{name}"].nbytes for name in "xyt")
    assert algorithm.progress.memory_bytes == stored


def test_coreset_is_at_most_half_of_a_task():
    """20 of each class are requested, but the task has 60 samples."""
    trace = run("kcl", "torch", **SMALL | {"coreset_per_class": 20})
    assert len(trace.arrays["memory/y"]) == 2 * 30


# ---- evaluation


@pytest.mark.ci
@every_backend
def test_tasks_without_a_coreset_are_not_measured(backend: str):
    """Row 0 and later tasks are NaN."""
    matrix = shared_run("kcl", backend, **SMALL).matrix
    assert (np.isnan(matrix) == [[True, True], [False, True], [False, False]]).all()


@pytest.mark.ci
@every_backend
def test_evaluation_batches_change_nothing(backend: str):
    """Features are scaled by the coreset, so a prediction depends on its sample only."""
    large = shared_run("kcl", backend, **SMALL)
    stream = SMALL["stream"] | {"eval_batch_size": 7}
    small = run("kcl", backend, **SMALL | {"stream": stream})
    np.testing.assert_array_equal(small.matrix, large.matrix)
    assert_same_arrays(small.arrays, large.arrays, 0.0)


def test_predictions_depend_on_other_samples_with_the_authors_scaling_only():
    """Compare the prediction of a sample by itself and among others."""
    for scaling, alone in (("min_max", True), ("l2", True), ("authors", False)):
        trace = run("kcl", "torch", **SMALL | {"scaling": scaling, "kernel_type": "linear"})
        algorithm = trace.algorithm
        arrays = algorithm.evaluation_arrays(1)
        x = algorithm.engine.inputs(algorithm.engine.dataset.x[:20])
        weights = algorithm.params, algorithm.stats
        many = algorithm.evaluation_logits(*weights, arrays, x)[:1].detach().numpy()
        one = algorithm.evaluation_logits(*weights, arrays, x[:1]).detach().numpy()
        assert np.allclose(many, one, rtol=1e-4, atol=1e-5) is alone


@every_backend
def test_each_task_has_its_own_classifier(backend: str):
    """With its own coreset, scalars and bases, which are the same at every call."""
    algorithm = shared_run("kcl", backend, **SMALL).algorithm
    one, again, two = (algorithm.evaluation_arrays(task) for task in (1, 1, 2))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert abs(np.asarray(one.bases) - np.asarray(two.bases)).max() > 0.1
    assert float(one.gamma) == np.asarray(algorithm.export_arrays()["params/gamma"])[0]
    other = build("kcl", backend, **SMALL, seed=1)
    Trainer(other).setup()
    other.import_arrays(algorithm.export_arrays())
    redrawn = other.evaluation_arrays(1)
    np.testing.assert_array_equal(np.asarray(redrawn.gamma), np.asarray(one.gamma))
    assert abs(np.asarray(redrawn.bases) - np.asarray(one.bases)).max() > 0.1


@every_backend
def test_a_run_can_be_resumed_from_its_arrays(backend: str):
    """They include coresets, phases and scalars, so predictions are the same."""
    algorithm = shared_run("kcl", backend, **SMALL).algorithm
    other = build("kcl", backend, **SMALL)
    Trainer(other).setup()
    other.import_arrays(algorithm.export_arrays())
    assert_same_arrays(other.export_arrays(), algorithm.export_arrays(), 0.0)
    for task in (1, 2):
        counts = (a.engine.count_correct(task, [None]) for a in (other, algorithm))
        assert len(set(map(tuple, counts))) == 1


def test_evaluation_does_not_affect_training():
    """Train mode, statistics and parameters stay the same."""
    trace = run("kcl", "torch", **SMALL | {"backbone": {"batch_norm": True, "dropout": 0.2}})
    algorithm = trace.algorithm
    before = algorithm.export_arrays()
    algorithm.engine.count_correct(1, [None])
    assert algorithm.module.training
    assert_same_arrays(algorithm.export_arrays(), before, 0.0)


# ---- options


@pytest.mark.parametrize(
    "option",
    [
        {"coreset_per_class": 3},
        {"num_bases": 16},
        {"tau": 1.0},
        {"kernel_type": "rbf"},
        {"kernel_type": "linear"},
        {"kernel_type": "poly"},
        {"scaling": "authors"},
        {"scaling": "l2"},
        {"lambda_init": 1.0},
    ],
    ids=lambda option: "-".join(map(str, *option.items())),
)
def test_options_matter(option: dict[str, Any]):
    """Each changes the losses of a run."""
    ordinary = shared_run("kcl", "torch", **SMALL)
    trace = run("kcl", "torch", **SMALL | option)
    steps = min(len(trace.losses), len(ordinary.losses))
    assert abs(trace.losses[:steps] - ordinary.losses[:steps]).max() > 1e-4


def test_chunk_boundaries_change_nothing():
    """The noise of a step depends on the step only."""
    whole = shared_run("kcl", "torch", **SMALL)
    training = SMALL["training"] | {"chunk_steps": 3}
    cut = run("kcl", "torch", **SMALL | {"training": training})
    np.testing.assert_array_equal(cut.losses, whole.losses)


def test_refuses_a_stream_without_known_tasks():
    """On a class-incremental stream the coreset could not be chosen."""
    with pytest.raises(ConfigError, match="benchmark.scenario='class'.*task of a test sample"):
        build("kcl", "torch", benchmark="split_digits", stream={"scenario": "class"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("coreset_per_class", 0),
        ("num_bases", 0),
        ("tau", -1.0),
        ("kernel_type", "rfff"),
        ("scaling", "max"),
        ("lambda_init", -0.1),
    ],
)
def test_refuses(key: str, value: Any):
    """The message names the key and the value."""
    with pytest.raises(ConfigError, match=f"{key}={value!r}"):
        build("kcl", "torch", **{key: value})

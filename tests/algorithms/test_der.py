"""DER and DER++: stored logits, both losses by hand, and every option."""

from __future__ import annotations

import numpy as np
import pytest
from algorithms.replay_by_hand import (
    BIAS,
    KERNEL,
    SETTING,
    Arrays,
    HandStep,
    assert_steps_as_by_hand,
    mean_gradient,
    mean_loss,
    tiny_run,
)
from comparison import assert_close, assert_same_arrays, assert_same_run
from experiments import BACKENDS, build, every_backend, jax_in_full, run, shared_run

from seqrun.checks import ConfigError

OFF = {"der": {"alpha": 0.0}, "derpp": {"alpha": 0.0, "beta": 0.0}}
SPEC = SETTING | {"memory_size": 60}

every_algo = pytest.mark.parametrize("algo", ["der", "derpp"])


def distance_gradient(w: Arrays, x: np.ndarray, z: np.ndarray) -> Arrays:
    """Return the gradient of mean((h(x) - z)^2) over batch and classes."""
    delta = 2 * (x @ w[KERNEL] + w[BIAS] - z) / z.size
    return {KERNEL: x.T @ delta, BIAS: delta.sum(0)}


@jax_in_full
def test_every_step_of_der_is_as_by_hand(backend: str):
    """CE(B) + alpha mean((h(x') - z')^2), z' the logits of the step that first saw x'.

    It detects logits of the current x, logits after the update, and a sum in place of the mean.
    """

    def rule(step: HandStep):
        x, y, z = step.batches["replay"]
        gradient = step.gradient
        if len(y):
            added = distance_gradient(step.w, x, z)
            gradient = {n: g + 0.8 * added[n] for n, g in gradient.items()}
        return mean_loss(step.w, *step.batch), gradient

    options = {"alpha": 0.8, "memory_size": 5, "memory_batch_size": 4}
    assert_steps_as_by_hand(tiny_run("der", backend, **options), rule)


@jax_in_full
def test_every_step_of_derpp_is_as_by_hand(backend: str):
    """DER + beta CE(h(x''), y'') on a second batch, with a reservoir that observes every epoch."""

    def rule(step: HandStep):
        x, _, z = step.batches["replay"]
        second, labels, _ = step.batches["replay_labels"]
        gradient = step.gradient
        if len(labels):
            added = distance_gradient(step.w, x, z)
            replay = mean_gradient(step.w, second, labels)
            gradient = {n: g + 0.8 * added[n] + 0.6 * replay[n] for n, g in gradient.items()}
        return mean_loss(step.w, *step.batch), gradient

    options = {"alpha": 0.8, "beta": 0.6, "memory_size": 5, "memory_batch_size": 3}
    trace = tiny_run("derpp", backend, observe="every_epoch", **options)
    assert_steps_as_by_hand(trace, rule, ("replay", "replay_labels"))
    pairs = [(set(row["replay"]), set(row["replay_labels"])) for row in trace.plan.rows[1:]]
    assert any(first != second for first, second in pairs)


def test_one_distance_in_numbers():
    """h = (1, 3), z = (0, 1): mean(1, 4) = 2.5; d/dh = (1, 2)."""
    w = {KERNEL: np.array([[1.0, 3.0]]), BIAS: np.zeros(2)}
    gradient = distance_gradient(w, np.array([[1.0]]), np.array([[0.0, 1.0]]))
    assert gradient[BIAS].tolist() == [1.0, 2.0]


@every_algo
@jax_in_full
def test_reduces_to_naive(algo: str, backend: str):
    """With alpha = beta = 0, to the bit on PyTorch, in the counted correct predictions too."""
    tolerance = 0.0 if backend == "torch" else 1e-5
    naive = shared_run("naive", backend, **SETTING)
    trace = run(algo, backend, **SPEC, **OFF[algo])
    assert_close("losses", trace.losses, naive.losses, tolerance)
    kept = {n: a for n, a in trace.arrays.items() if n in naive.arrays}
    assert_same_arrays(kept, naive.arrays, tolerance)
    assert (trace.matrix == naive.matrix)[~np.isnan(naive.matrix)].all()
    assert (trace.correct == naive.correct).all()


@pytest.mark.parametrize(("algo", "option"), [("der", {"alpha": 0.1}), ("derpp", {"beta": 0.1})])
@jax_in_full
def test_a_coefficient_above_zero_differs_from_naive(algo: str, option: dict, backend: str):
    """Each term alone changes the run."""
    naive = shared_run("naive", backend, **SETTING)
    trace = run(algo, backend, **SPEC, **OFF[algo] | option)
    kernel, of_naive = (t.arrays["params/classifier/kernel"] for t in (trace, naive))
    assert abs(kernel - of_naive).max() > 1e-3


def test_memory_batches_update_batch_statistics_too():
    """With alpha = 0 and BatchNorm the parameters are naive's, but running statistics differ."""
    setting = {"backbone": {"batch_norm": True}, "optimizer_options": {"lr": 0.01}}
    naive = shared_run("naive", "torch", **setting)
    trace = run("der", "torch", **setting, alpha=0.0)
    for name, array in naive.arrays.items():
        same = np.array_equal(trace.arrays[name], array)
        assert same == (not name.startswith("stats/")), name


@pytest.mark.ci
@every_algo
@every_backend
def test_logits_of_all_classes_are_stored(algo: str, backend: str):
    """In a class-incremental stream too: none is masked, so no distance is infinite."""
    trace = shared_run(algo, backend, **SPEC)
    stored = trace.arrays["state/logits"]
    assert (abs(stored) < 100).all()
    of_first = trace.algorithm.memory.data.t == 0
    later_classes = ~trace.algorithm.benchmark.class_mask[0]
    assert of_first.sum() > 3 and later_classes.sum() == 8
    assert (stored[of_first][:, later_classes] != 0).all()


@every_algo
def test_logits_stay_with_their_samples(algo: str):
    """If the network does not change, z = h(x) at the end for every stored sample."""
    frozen = run(algo, "torch", optimizer_options={"lr": 1e-12}, memory_size=40)
    algorithm = frozen.algorithm
    import torch

    with torch.no_grad():
        x = algorithm.engine.inputs(torch.from_numpy(algorithm.memory.data.x))
        logits = algorithm.module(x).numpy()
    assert algorithm.memory.filled == 40
    assert set(algorithm.memory.data.t) == {0, 1, 2}
    assert_close("logits", frozen.arrays["state/logits"], logits, 1e-5)


@pytest.mark.parametrize(
    ("algo", "option"),
    [
        ("der", {"alpha": 0.5}),
        ("der", {"memory_size": 20}),
        ("der", {"memory_batch_size": 3}),
        ("der", {"observe": "first_epoch"}),
        ("derpp", {"alpha": 1.0}),
        ("derpp", {"beta": 0.5}),
    ],
)
def test_options_matter(algo: str, option: dict):
    """A run with the option differs."""
    shipped, changed = (shared_run(algo, "torch", **SPEC | o) for o in ({}, option))
    assert abs(shipped.losses - changed.losses).max() > 1e-4


@pytest.mark.ci
@every_algo
def test_twins_agree_on_the_options(algo: str):
    """The loss of every step, and every field of memory and state."""
    options = {"alpha": 2.0, "observe": "every_epoch"}
    by_torch, by_jax = (shared_run(algo, b, **SPEC, **options) for b in BACKENDS)
    assert {"memory/x", "memory/seen", "state/logits"} <= set(by_torch.arrays)
    assert_same_run(by_jax, by_torch, 1e-5)


@every_backend
def test_memory_counts_its_logits(backend: str):
    """60 samples with 64 + 4 + 4 bytes and 10 float32 logits each."""
    algorithm = shared_run("der", backend, **SPEC).algorithm
    assert algorithm.progress.memory_bytes == 60 * (72 + 40)


@every_backend
@pytest.mark.parametrize(
    ("algo", "option", "message"),
    [
        ("der", {"alpha": -1.0}, "alpha=-1.0: must be a number >= 0"),
        ("derpp", {"beta": -1.0}, "beta=-1.0: must be a number >= 0"),
        ("der", {"observe": "never"}, "observe='never': must be one of first_epoch, every_epoch"),
        ("derpp", {"memory_size": 0}, "memory_size=0: must be an integer >= 1"),
        (
            "der",
            {"memory_batch_size": 1, "backbone": {"batch_norm": True}},
            "memory_batch_size=1: must be at least 2 with a BatchNorm backbone",
        ),
    ],
)
def test_refuses(backend: str, algo: str, option: dict, message: str):
    """Values out of range, and what BatchNorm cannot normalise."""
    with pytest.raises(ConfigError, match=message):
        build(algo, backend, **option)

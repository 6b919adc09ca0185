"""Requirements for every algorithm of conf/algo, and for those with a penalty or with replay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from algorithms.side_effects import assert_reduces_to_naive, jax_in_full
from experiments import ALGORITHMS, algorithm_class, every_algorithm, exported, run, shared_run
from parity.cases import SMALLER

from seqrun.callbacks import BaseCallback
from seqrun.training.callback import Run

DECLARED = {
    algo: kind.coefficient_name
    for algo in ALGORITHMS
    if hasattr(kind := algorithm_class(algo, "torch"), "coefficient_name")
}
"""Algorithm -> name of its penalty's coefficient."""
with_a_penalty = pytest.mark.parametrize("algo", DECLARED)
REPLAYING = [a for a in ALGORITHMS if len(algorithm_class(a, "torch").batch_names) > 1]
with_replay = pytest.mark.parametrize("algo", REPLAYING)

ONE_EPOCH = {"training": {"epochs_per_task": 1}}


class Watch(BaseCallback):
    """Record the state of training before and after an algorithm's work at the end of a task.

    The algorithm's hooks run before those of callbacks, so `on_after_task` here sees the state
    after that work.
    """

    def __init__(self) -> None:
        self.before: list[dict[str, np.ndarray]] = []
        self.after: list[dict[str, np.ndarray]] = []
        self.modes: list[bool] = []

    def on_after_epoch(self, run: Run) -> None:
        """Record the statistics after the last epoch of a task."""
        if run.epoch == run.algorithm.training.epochs(run.task):
            self.before.append(self.statistics(run.algorithm))

    def on_after_task(self, run: Run) -> None:
        """Record the statistics after the task."""
        self.after.append(self.statistics(run.algorithm))

    def on_before_chunk(self, run: Run, chunk: Any) -> None:
        """Record the module's mode; flax has none."""
        if run.algorithm.backend == "torch":
            self.modes.append(run.algorithm.module.training)

    def on_after_chunk(self, run: Run, chunk: Any) -> None:
        """Record the mode again."""
        self.on_before_chunk(run, chunk)

    @staticmethod
    def statistics(algorithm: Any) -> dict[str, np.ndarray]:
        """Copy BatchNorm's running statistics."""
        return exported(algorithm.backend, stats=algorithm.stats)


@every_algorithm
@jax_in_full
def test_own_passes_leave_training_as_it_was(algo: str, backend: str):
    """BatchNorm's statistics, train mode, and the generators of PyTorch and NumPy."""
    import torch

    algorithm_class(algo, backend)  # importing jax draws from NumPy's generator
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    np.random.seed(3)
    drawn = np.random.random(3)
    np.random.seed(3)
    watch = Watch()
    spec = SMALLER.get(algo, {}) | {"optimizer_options": {"lr": 0.01}}
    run(algo, backend, backbone={"batch_norm": True}, callbacks=[watch], **spec)
    assert len(watch.before) == len(watch.after) > 0
    for before, after in zip(watch.before, watch.after, strict=True):
        assert len(before) == 4
        for name, statistic in before.items():
            np.testing.assert_array_equal(after[name], statistic, err_msg=name)
    assert all(watch.modes)
    assert torch.equal(torch.get_rng_state(), expected)
    np.testing.assert_array_equal(np.random.random(3), drawn)


@pytest.mark.ci
@every_algorithm
@jax_in_full
def test_the_same_run_twice_gives_the_same_bits(algo: str, backend: str):
    """Every loss, every exported array, and the accuracy matrix."""
    spec = SMALLER.get(algo, {}) | ONE_EPOCH
    first, second = (run(algo, backend, **spec) for _ in range(2))
    assert first.losses.tobytes() == second.losses.tobytes()
    assert sorted(first.arrays) == sorted(second.arrays)
    for name, array in first.arrays.items():
        assert array.tobytes() == second.arrays[name].tobytes(), name
    np.testing.assert_array_equal(first.matrix, second.matrix)


@every_algorithm
def test_exported_arrays_are_a_snapshot(algo: str):
    """Further training does not change exported arrays; JAX's arrays cannot change."""

    class Export(BaseCallback):
        kept: list[tuple[dict[str, np.ndarray], dict[str, bytes]]] = []

        def on_after_task(self, run: Run) -> None:
            arrays = run.algorithm.export_arrays()
            self.kept.append((arrays, {n: a.tobytes() for n, a in arrays.items()}))

    callback = Export()
    run(algo, "torch", callbacks=[callback], **SMALLER.get(algo, {}) | ONE_EPOCH)
    first = callback.kept[0]
    assert first[1] and all(a.tobytes() == first[1][n] for n, a in first[0].items())


@with_a_penalty
@jax_in_full
def test_coefficient_zero_is_naive(algo: str, backend: str):
    assert_reduces_to_naive(algo, backend, **{DECLARED[algo]: 0.0})


@with_a_penalty
def test_coefficient_above_zero_is_not_naive(algo: str):
    """From the second task on; in the first, nothing is protected yet."""
    with_penalty = shared_run(algo, "torch", stepped=True)
    naive = shared_run("naive", "torch", stepped=True)
    first = len(naive.losses) // 3
    assert with_penalty.losses[:first].tobytes() == naive.losses[:first].tobytes()
    assert abs(with_penalty.losses[first + 1 :] - naive.losses[first + 1 :]).max() > 1e-4


@with_a_penalty
def test_importance_is_not_negative_and_grows_from_zero(algo: str):
    """It is zero during the first task, then nowhere negative and with a positive sum."""
    steps = shared_run(algo, "torch", stepped=True).steps
    per_task = len(steps) // 3
    for number, step in enumerate(steps):
        omega = {n: a for n, a in step.items() if n.startswith("state/importance/")}
        assert omega
        total = 0.0
        for name, value in omega.items():
            assert np.isfinite(value).all() and (value >= 0).all(), name
            total += value.sum()
        assert (total > 0) == (number >= per_task)


@with_a_penalty
@jax_in_full
@pytest.mark.parametrize("task", [1, 2])
def test_every_past_task_affects_the_penalty(algo: str, backend: str, task: int):
    """Without a past task's importance, the gradient of the penalty after task 3 differs.

    The coefficient is 0, so both runs have the same parameters to the bit and only the stored
    importance differs.
    """

    class Forgetful(algorithm_class(algo, backend)):
        def calculate_parameter_importance(self) -> Any:
            importance = super().calculate_parameter_importance()
            return {n: (0 if self.task == task else 1) * v for n, v in importance.items()}

    options = {DECLARED[algo]: 0.0} | ONE_EPOCH
    whole = run(algo, backend, **options).arrays
    without = run(algo, backend, kind=Forgetful, **options).arrays
    largest = 0.0
    for name in whole:
        if name.startswith("params/"):
            leaf = name.removeprefix("params/")
            np.testing.assert_array_equal(without[name], whole[name])
            pulls = [
                a[f"state/importance/{leaf}"]
                * (1 + a[name] - a[f"state/anchor/{leaf}"] - a.get(f"state/offset/{leaf}", 0.0))
                for a in (whole, without)
            ]
            largest = max(largest, abs(pulls[0] - pulls[1]).max() / abs(pulls[0]).max())
    assert largest > 0.01


class WatchMemory(BaseCallback):
    """Record the memory's size at the end of each task, and the tasks of replayed samples."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int, int]] = []
        self.replayed: list[np.ndarray] = []

    def on_after_task(self, run: Run) -> None:
        """Record the numbers of samples, of bytes and of samples allowed."""
        memory = run.algorithm.memory
        self.sizes.append((memory.filled, memory.num_bytes, memory.capacity(run.task)))

    def on_before_chunk(self, run: Run, chunk: Any) -> None:
        """Record how many tasks ago the replayed samples were seen."""
        for name in run.algorithm.batch_names[1:]:
            rows = chunk.arrays[name].ravel()
            self.replayed.append(run.task - 1 - run.algorithm.replay_dataset.t[rows])


@with_replay
@jax_in_full
def test_memory_keeps_within_its_budget_and_is_replayed(algo: str, backend: str):
    """In samples and bytes, after every task; samples of every past task are replayed."""
    watch = WatchMemory()
    spec = SMALLER.get(algo, {}) | ONE_EPOCH
    trace = run(algo, backend, callbacks=[watch], **spec)
    shape = trace.algorithm.benchmark.input_shape
    sample_bytes = int(np.prod(shape)) + 8  # a byte for each value; 4 bytes each for y and t
    logits = 4 * trace.algorithm.benchmark.num_classes  # which DER stores too
    for samples, stored, allowed in watch.sizes:
        assert 0 < samples <= allowed
        assert stored <= samples * sample_bytes
    assert trace.algorithm.progress.memory_bytes <= watch.sizes[-1][0] * (sample_bytes + logits)
    assert set(np.concatenate(watch.replayed)) >= {1, 2}, "memory of no past task was replayed"

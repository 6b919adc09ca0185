"""What a run trains on, what it measures and what it does not change."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import assert_same_run
from experiments import (
    BACKENDS,
    LossRecorder,
    algorithm_class,
    build,
    cases,
    component,
    every_backend,
    jax_in_full,
    run,
    shared_run,
)
from tiny import Linear, TinyBenchmark, cross_entropies, sample_gradients

from seqrun.algorithms.base import BaseAlgorithm, TrainingOptions
from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.plan import RandomStreams, batch_order
from seqrun.records.checkpoint import Checkpoint
from seqrun.training.callback import Run
from seqrun.training.divergence import TrainingDiverged
from seqrun.training.engine.threads import default_num_threads
from seqrun.training.limits import chunk_rule
from seqrun.training.options import matmul_precision
from seqrun.training.trainer import Trainer

NOISY = {"backbone": {"dropout": 0.4, "batch_norm": True}, "training": {"epochs_per_task": 1}}


def naive(backend: str, **parts: Any) -> BaseAlgorithm:
    return algorithm_class("naive", backend)(**parts)


def digest(arrays: dict[str, np.ndarray], matrix: np.ndarray) -> str:
    parts = [name.encode() + arrays[name].tobytes() for name in sorted(arrays)]
    return hashlib.sha256(b"".join(parts) + matrix.tobytes()).hexdigest()


@every_backend
def test_a_partial_last_batch_is_trained_on_exactly(backend: str):
    """7 samples in batches of 3 give 3 steps; the loss of the last is that of one sample."""
    streams, benchmark = RandomStreams(0), TinyBenchmark(num_tasks=1)
    benchmark.prepare(streams)
    data = benchmark.task_data(1)
    x = data.x.reshape(7, -1) / 255.0
    recorder = LossRecorder()
    algorithm = naive(
        backend,
        benchmark=TinyBenchmark(num_tasks=1),
        backbone=Linear(backend=backend),
        optimizer=component("optimizer", "sgd", backend)[0](lr=0.5),
        callbacks=[recorder],
    )
    algorithm.fit()
    trace = np.concatenate(recorder.losses)
    weights = {n: w.astype(float) for n, w in algorithm.initial_weights().items()}
    kernel, bias = weights["classifier/kernel"], weights["classifier/bias"]
    expected = []
    full, partial = batch_order(streams, 1, 1, 7, 3)
    for rows in [*full, *partial]:
        expected.append(cross_entropies(kernel, bias, x[rows], data.y[rows]).mean())
        gradient = sample_gradients(kernel, bias, x[rows], data.y[rows])
        kernel = kernel - 0.5 * gradient["classifier/kernel"].mean(0)
        bias = bias - 0.5 * gradient["classifier/bias"].mean(0)
    assert [len(r) for r in [*full, *partial]] == [3, 3, 1]
    np.testing.assert_allclose(trace, expected, rtol=1e-5)
    np.testing.assert_allclose(algorithm.export_arrays()["params/classifier/bias"], bias, atol=1e-6)
    mean = np.average(expected, weights=[3, 3, 1])
    assert algorithm.progress.task_losses == pytest.approx([mean], rel=1e-5)
    assert algorithm.progress.final_loss == pytest.approx(expected[-1], rel=1e-5)
    assert (algorithm.progress.global_step, algorithm.progress.samples_seen) == (3, 7)


@pytest.mark.parametrize(
    ("algo", "backend"), cases(("naive", "ewc"), BACKENDS, full=[("ewc", "jax")])
)
def test_the_same_run_twice_is_the_same_to_the_bit(algo: str, backend: str):
    first, second = (run(algo, backend, **NOISY) for _ in range(2))
    assert digest(first.arrays, first.matrix) == digest(second.arrays, second.matrix)
    assert first.losses.tobytes() == second.losses.tobytes()
    other = run(algo, backend, **NOISY, seed=1)
    assert digest(first.arrays, first.matrix) != digest(other.arrays, other.matrix)


@pytest.mark.ci
@every_backend
def test_another_process_gives_the_same_bits(backend: str):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from experiments import run\n"
        "import hashlib\n"
        f"trace = run('ewc', {backend!r}, backbone={{'dropout': 0.4, 'batch_norm': True}},"
        " training={'epochs_per_task': 1})\n"
        "parts = [n.encode() + trace.arrays[n].tobytes() for n in sorted(trace.arrays)]\n"
        "digest = hashlib.sha256(b''.join(parts) + trace.matrix.tobytes()).hexdigest()\n"
        "sys.stdout.write(digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8", timeout=300
    )
    here = run("ewc", backend, **NOISY)
    assert done.stdout == digest(here.arrays, here.matrix)


@pytest.mark.ci
@every_backend
def test_chunks_of_another_length_change_nothing(backend: str):
    """Equal to the bit on PyTorch; up to rounding on JAX, which compiles another program."""
    plain = shared_run("ewc", backend)
    cut = run("ewc", backend, training={"epochs_per_task": 2, "chunk_steps": 3})
    tolerance = 0.0 if backend == "torch" else 1e-5
    np.testing.assert_allclose(cut.losses, plain.losses, atol=tolerance)
    for name, array in plain.arrays.items():
        np.testing.assert_allclose(cut.arrays[name], array, atol=tolerance, err_msg=name)


def test_torchs_global_generator_is_left_alone():
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run("ewc", "torch", **NOISY)
    assert torch.equal(torch.rand(3), expected)
    threads = torch.get_num_threads()
    assert build("naive", "torch").fit() and torch.get_num_threads() == threads


@pytest.mark.ci
@every_backend
def test_dropout_trains_and_does_not_evaluate(backend: str):
    """Dropout changes training but not the evaluation of the same weights."""
    plain, dropped = (
        run("naive", backend, backbone={"dropout": p}, training={"epochs_per_task": 1})
        for p in (0.0, 0.5)
    )
    assert abs(plain.losses - dropped.losses).max() > 0.01
    np.testing.assert_array_equal(plain.matrix[0], dropped.matrix[0])
    # inverted dropout: the untrained network's loss is the same in expectation
    assert plain.losses[:9].mean() == pytest.approx(dropped.losses[:9].mean(), rel=0.1)


@every_backend
def test_a_loss_that_is_not_finite_stops_the_run(backend: str):
    with pytest.raises(TrainingDiverged, match="at task 3, epoch 1, step 39; a smaller"):
        build("naive", backend, optimizer_options={"lr": 1e9}).fit()


@every_backend
@pytest.mark.parametrize(
    ("evaluate_on", "measured"),
    [
        ("seen_and_next", [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]),
        ("seen", [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        ("all", [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]),
    ],
)
def test_what_is_not_measured_is_nan(backend: str, evaluate_on: str, measured: list):
    training = {"epochs_per_task": 1, "evaluate_on": evaluate_on}
    algorithm = build("naive", backend, training=training)
    algorithm.fit()
    np.testing.assert_array_equal(~np.isnan(algorithm.accuracy_matrix), np.array(measured, bool))


@pytest.mark.ci
@every_backend
def test_accuracy_is_exact_in_evaluation_batches_of_any_size(backend: str):
    matrices = [run("naive", backend, stream={"eval_batch_size": n}).matrix for n in (357, 100)]
    np.testing.assert_array_equal(*matrices)
    counts = matrices[0][~np.isnan(matrices[0])] * 357
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)


def test_learning_rate_schedule():
    """max(lr gamma^(t-1), lr_min), and gamma^t with decay_first_task (Mirzadeh 2020)."""
    options = TrainingOptions(lr_decay=0.5, lr_min=0.02)
    assert [options.learning_rate(0.1, t) for t in (1, 2, 3, 4)] == [0.1, 0.05, 0.025, 0.02]
    first = TrainingOptions(lr_decay=0.5, lr_min=0.02, decay_first_task=True)
    assert [first.learning_rate(0.1, t) for t in (1, 2, 3)] == [0.05, 0.025, 0.02]
    assert TrainingOptions().learning_rate(0.1, 7) == 0.1


@pytest.mark.ci
@every_backend
def test_the_learning_rate_reaches_the_optimizer(backend: str):
    """With lr_min = 0 and a tiny gamma, tasks after the first do not change the weights."""
    spec = {"training": {"epochs_per_task": 1, "lr_decay": 1e-12}}
    trace = run("naive", backend, **spec)
    first = run("naive", backend, **spec, stream={"num_tasks": 1})
    for name, array in first.arrays.items():
        np.testing.assert_allclose(trace.arrays[name], array, atol=1e-7)


@pytest.mark.parametrize(
    ("training", "steps"), [({"epochs_per_task": [2, 1, 3]}, 54), ({"epochs_per_task": 1}, 27)]
)
def test_epochs_per_task(training: dict, steps: int):
    assert len(run("naive", "torch", training=training).losses) == steps


@jax_in_full
def test_when_the_optimizer_starts_afresh(backend: str):
    epochs, momentum = {"epochs_per_task": 2}, {"optimizer_options": {"momentum": 0.9}}
    traces = {
        when: run("naive", backend, training=epochs | {"reinit_optimizer": when}, **momentum)
        for when in ("task", "epoch", "never")
    }
    losses = [traces[when].losses for when in ("never", "task", "epoch")]
    assert np.allclose(losses[0][:18], losses[1][:18]) and np.allclose(losses[1][:9], losses[2][:9])
    assert not np.allclose(losses[0][18:], losses[1][18:])
    assert not np.allclose(losses[1][9:18], losses[2][9:18])


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="backbone=mlp: is for backend jax"):
        naive(
            "torch",
            benchmark=TinyBenchmark(),
            backbone=component("backbone", "mlp", "jax")[0](),
            optimizer=component("optimizer", "sgd", "torch")[0](),
        )
    with pytest.raises(ConfigError, match=r"epochs_per_task=\[1, 2\]: has 2 entries"):
        build("naive", "torch", training={"epochs_per_task": [1, 2]})
    with pytest.raises(ConfigError, match="one sample, which BatchNorm cannot normalise"):
        stream = {"samples_per_task": 81}
        build("naive", "torch", backbone={"batch_norm": True}, stream=stream).fit()


def test_fixed_rules():
    """Lengths of chunks and numbers of threads depend only on shapes."""
    w1 = (784 * 256 + 256 * 256 + 256 * 10) * 10
    assert chunk_rule(w1, 4 * 784 * 10) == 1000
    assert chunk_rule(10**9, 4 * 3072 * 10) == 3
    assert chunk_rule(10**12, 4) == 1
    assert default_num_threads(w1) == 1
    assert default_num_threads(10**9) == 2


WIDE: dict[str, Any] = {
    "backbone": {"width": 1500},
    "stream": {"num_tasks": 1, "samples_per_task": 256, "batch_size": 256},
    "training": {"epochs_per_task": 3},
}


@pytest.mark.ci
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process")
def test_the_cores_at_hand_change_no_bit():
    """Enough work for more than one thread; on one core and on all of them."""
    cores, runs = os.sched_getaffinity(0), []
    for allowed in (cores, {min(cores)}):
        os.sched_setaffinity(0, allowed)
        try:
            runs.append(run("naive", "torch", **WIDE))
        finally:
            os.sched_setaffinity(0, cores)
    both = [one.algorithm.engine.execution["num_threads"] for one in runs]
    assert both == [2, 2]  # the rule of shapes, not the number of cores
    for name, array in runs[0].arrays.items():
        assert array.tobytes() == runs[1].arrays[name].tobytes(), name


@pytest.mark.ci
def test_a_run_continues_with_the_threads_that_it_began_with():
    """A checkpoint keeps their number, which changes the last bits."""
    began = build("naive", "torch", **WIDE)
    began.fit()
    checkpoint = Trainer(began).checkpoint()
    assert checkpoint.state["num_threads"] == 2
    before = Checkpoint(checkpoint.arrays, {**checkpoint.state, "num_threads": 3})
    none = Checkpoint(checkpoint.arrays, {**checkpoint.state, "num_threads": None})  # of 0.1
    for start, expected in ((before, 3), (none, 2), (checkpoint, 2)):
        continued = build("naive", "torch", **WIDE)
        continued.fit(resume_from=start)
        assert continued.engine.execution["num_threads"] == expected


def test_jax_says_that_it_cannot_have_the_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Arrays that are alive fix them; a run that began with others is refused."""
    import jax.numpy as jnp

    from seqrun.training.engine import jax as engine

    monkeypatch.setattr(engine, "_process_threads", [])
    monkeypatch.setenv("NPROC", "7")  # of the user: the rule goes by shapes alone
    small = build("naive", "jax")
    small.engine.start()
    assert os.environ["NPROC"] == "1" and small.engine.execution["num_threads"] == 1
    small.engine.start(1)
    assert capsys.readouterr().err == ""
    held = jnp.ones(3)
    wide = build("naive", "jax", **WIDE)
    wide.engine.start()
    assert wide.engine.execution["num_threads"] == 1
    assert "warning: num_threads is 1 in this run, not 2" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="num_threads=1: must be 2, with which this run began"):
        small.engine.start(2)
    assert held.sum() == 3


@every_backend
def test_precision_of_a_gpus_products(backend: str, monkeypatch: pytest.MonkeyPatch):
    """What is set: float32 on both backends unless tf32 is asked for; their defaults differ."""
    for precision in ("float32", "tf32"):
        algorithm = build("naive", backend, training={"matmul_precision": precision})
        if backend == "jax":
            import jax

            find_device = staticmethod(lambda device: "cuda")
            monkeypatch.setattr(type(algorithm.engine), "find_device", find_device)
            name = "jax_default_matmul_precision"
            before = getattr(jax.config, name)
            monkeypatch.setattr(jax, "devices", lambda kind: [None])
            try:
                algorithm.engine.start()
                expected = "tensorfloat32" if precision == "tf32" else "float32"
                assert getattr(jax.config, name) == expected
            finally:
                jax.config.update(name, before)
        else:
            import torch

            from seqrun.training.engine import torch as engine

            def on_gpu(training: TrainingOptions, device_kind: str) -> str:
                return matmul_precision(training, "cuda")

            def settings() -> tuple[str, bool, bool]:
                products = torch.get_float32_matmul_precision()
                backends = torch.backends
                return products, backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32

            before = settings()
            monkeypatch.setattr(engine, "matmul_precision", on_gpu)
            algorithm.engine.start()
            is_tf32 = precision == "tf32"
            assert settings() == ("high" if is_tf32 else "highest", is_tf32, is_tf32)
            algorithm.engine.stop()
            assert settings() == before
        assert algorithm.engine.execution["matmul_precision"] == precision


@dataclass
class Predictions(BaseCallback):
    """Count each step's correct predictions from its logits and its batch."""

    counted: list[int] = field(default_factory=list)

    def on_after_backward(self, run: Run, step: Any) -> None:
        """Compare by sample."""
        logits, labels = (np.asarray(a.tolist()) for a in (step.logits, step.batch.y))
        self.counted.append(int((logits.argmax(1) == labels).sum()))


@pytest.mark.ci
@pytest.mark.parametrize("algo", ["naive", pytest.param("er", marks=pytest.mark.full)])
@every_backend
def test_training_accuracy_is_that_of_each_sample(algo: str, backend: str):
    """The samples of a batch that its own logits classify as their own labels say."""
    predictions, losses = Predictions(), LossRecorder()
    one_task: dict[str, Any] = {
        "stream": {"num_tasks": 1},
        "optimizer": "adam",
        "optimizer_options": {"lr": 0.01},
        "training": {"epochs_per_task": 8},
    }
    algorithm = build(algo, backend, callbacks=[predictions, losses], **one_task)
    algorithm.fit()
    assert np.concatenate(losses.correct).tolist() == predictions.counted
    assert sum(predictions.counted[-9:]) > 40  # of 85: chance would be 8
    whole = shared_run(algo, backend, **one_task)  # in chunks, without step hooks
    assert whole.correct.tolist() == predictions.counted


@every_backend
def test_a_cpu_multiplies_in_float32(backend: str):
    """Whatever is asked for; the record says so."""
    algorithm = build("naive", backend, training={"matmul_precision": "tf32"})
    algorithm.engine.start()
    assert algorithm.engine.execution["matmul_precision"] == "float32"
    algorithm.engine.stop()


@pytest.mark.ci
@pytest.mark.parametrize("sizes", [[10, 40, 25], [85, 1, 2]])
def test_a_batch_size_per_task(sizes: list[int]):
    """Each task has its own batch size, with a partial last batch; both backends agree."""
    runs = [run("naive", b, stream={"batch_size": sizes}) for b in ("torch", "jax")]
    for one in runs:
        assert one.algorithm.progress.global_step == one.algorithm.engine.total_steps
        steps = [-(-85 // size) for size in sizes]
        epochs = one.algorithm.training.epochs(1)
        assert len(one.losses) == epochs * sum(steps)
    assert_same_run(runs[1], runs[0], 1e-5)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([10, 20], "benchmark.batch_size=.*: has 2 entries, must have benchmark.num_tasks=3"),
        ([10, 0, 5], "benchmark.batch_size=0: must be an integer >= 1"),
        ("ten", "benchmark.batch_size='ten': must be an integer >= 1 or a list with one per task"),
        (2.5, "benchmark.batch_size=2.5: must be an integer >= 1 or a list with one per task"),
    ],
)
def test_refuses_batch_sizes(sizes: Any, said: str):
    """Each has its own message."""
    with pytest.raises(ConfigError, match=said):
        build("naive", "torch", stream={"batch_size": sizes})


def test_denormal_numbers_are_zero_in_steps_and_nowhere_else():
    """On PyTorch. The setting does not affect callbacks or code after a failed run."""
    import torch

    def flushed() -> bool:
        return not bool(torch.tensor(1e-40) * 1.0)

    seen: dict[str, bool] = {}
    fails = False
    kind = algorithm_class("naive", "torch")

    class Watched(kind):
        def on_before_training_step(self, step: Any) -> None:
            seen["step"] = flushed()

        def on_after_training_step(self, step: Any) -> None:
            if fails:
                raise ZeroDivisionError

    class Callback(BaseCallback):
        def on_after_chunk(self, run: Run, chunk: Any) -> None:
            seen["callback"] = flushed()

    run("naive", "torch", benchmark="split_digits", kind=Watched, callbacks=[Callback()])
    assert seen == {"step": True, "callback": False}
    assert not flushed()
    fails = True
    with pytest.raises(ZeroDivisionError):
        run("naive", "torch", benchmark="split_digits", kind=Watched)
    assert not flushed()

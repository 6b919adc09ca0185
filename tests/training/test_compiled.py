"""Compiled steps on PyTorch: the rule, and that the numbers stay the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from experiments import ALGORITHMS, admits, algorithm_class, build, run

from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.training.callback import Run
from seqrun.training.engine import compile as compiling
from seqrun.training.engine.compile import to_compile
from seqrun.training.engine.compile import torch as of_torch

ROOT = Path(__file__).parents[2]
ALWAYS = {"training": {"compile": "always", "chunk_steps": 8}}
EAGER = {"training": {"compile": "never", "chunk_steps": 8}}


@pytest.fixture(autouse=True)
def newer_torch() -> None:
    """Skip a test where torch cannot compile steps."""
    if not of_torch.can_compile_steps():
        pytest.skip("needs a torch that compiles the gradients of a step")


@pytest.mark.ci
def test_a_compiled_run_from_the_command_line(tmp_path: Path):
    """The record says that the run was compiled, and its losses equal those of an eager run."""
    losses = {}
    for how in ("always", "never"):
        command = [sys.executable, "run.py", "algo=naive", "benchmark.samples_per_task=105"]
        command += ["backbone.width=16", "benchmark.num_tasks=3", "training.chunk_steps=8"]
        command += [f"training.compile={how}", f"hydra.run.dir={tmp_path / how}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / how / "results.json").read_text(encoding="utf-8"))
        assert record["execution"]["compiled"] == ("steps" if how == "always" else False)
        losses[how] = record["runs"][0]["train_loss"]["per_task"]
    np.testing.assert_allclose(losses["always"], losses["never"], rtol=1e-4)


@pytest.mark.ci
def test_a_run_tells_torch_in_time(tmp_path: Path):
    """The cache folder is set before torch's compiler is imported, which reads it once."""
    code = """
import os
from experiments import run
from test_compiled import Counted
from seqrun.training.engine import torch as engine

Counted.calls = []
engine.CompiledSteps = Counted
run("naive", "torch", training={"compile": "always"})
print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""
    outer = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    paths = os.pathsep.join(str(ROOT / name) for name in ("tests", "tests/training", "src"))
    told = outer | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=told, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path / "seqrun" / "torch-"))


def test_preparing_to_compile_counts_as_compiling(
    counted: type[Counted], monkeypatch: pytest.MonkeyPatch
):
    """Importing torch's compiler takes seconds that do not count as training."""
    from seqrun.training.engine import torch as engine

    class Prepared(counted):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            time.sleep(0.5)
            super().__init__(*args, **options)

    monkeypatch.setattr(engine, "CompiledSteps", Prepared)
    trace = run("naive", "torch", training={"compile": "always", "epochs_per_task": 1})
    assert trace.algorithm.progress.timing["compile_seconds"] >= 0.5


@pytest.mark.ci
def test_compiling_again_for_one_shape_is_counted():
    """Such as when the second task computes something else on batches of the same size."""
    torch = of_torch.torch
    network = of_torch.CompiledNetwork(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()))
    x = torch.ones(4, 3)
    seconds = []
    for needs_gradient in (False, False, True, True):
        network(x.requires_grad_(needs_gradient))
        seconds.append(network.seconds)
    network.close()
    assert 0 < seconds[0] == seconds[1] < seconds[2] == seconds[3]


def test_scalars_of_each_task_are_arguments_of_the_program(monkeypatch: pytest.MonkeyPatch):
    """Stable SGD's learning rate, LFL's factor and others change with the task."""
    steps = of_torch.CompiledSteps(lambda *_: None, {"momentum"})
    monkeypatch.setattr(steps, "_call", lambda args, plain: args[-1])
    for lr in (0.1, 0.1, 0.05, 0.1):
        scalars = steps((), (), (), (), {"lr": lr, "penalty": 2 * lr, "momentum": 0.9})
        assert [float(scalars[n]) for n in ("lr", "penalty")] == pytest.approx([lr, 2 * lr])
        assert {n: type(v) for n, v in scalars.items()}["momentum"] is float
        assert {type(scalars[n]) for n in ("lr", "penalty")} == {of_torch.torch.Tensor}
    steps.close()


def test_another_coefficient_does_not_recompile():
    """A learning rate does not either: a grid compiles once."""
    steps = of_torch.CompiledSteps(lambda x, *rest: x * rest[-1]["penalty"])
    found, seconds = [], []
    for penalty in (2.0, 3.0):
        found.append(float(steps(of_torch.torch.ones(1), None, None, None, {"penalty": penalty})))
        seconds.append(steps.seconds)
    steps.close()
    assert found == [2.0, 3.0]
    assert 0 < seconds[0] == seconds[1]


@pytest.mark.ci
def test_steps_with_adam_are_compiled():
    """torch computes Adam's update differently if the learning rate is an array."""
    with_adam = {"optimizer": "adam", "optimizer_options": {"weight_decay": 0.01}}
    eager, compiled = (run("naive", "torch", **with_adam, **how) for how in (EAGER, ALWAYS))
    assert compiled.algorithm.engine.execution["compiled"] == "steps"
    np.testing.assert_allclose(compiled.losses, eager.losses, atol=2e-5)
    for name, array in eager.arrays.items():
        np.testing.assert_allclose(compiled.arrays[name], array, atol=2e-5, err_msg=name)


NOISY = {"width": 16, "batch_norm": True, "dropout": 0.2}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "a running Fisher": ("ewc", {"fisher_running": True}),
    "agem with BatchNorm": ("agem", {"backbone": NOISY | {"dropout": 0.0}}),
    # Its reference pass puts torch's generator back, which no program can: it runs as it is.
    "agem with dropout": ("agem", {"backbone": NOISY}),
    "icarl with BatchNorm and dropout": (
        "icarl",
        {"benchmark": "split_digits", "stream": {"scenario": "class"}, "backbone": NOISY},
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if "agem" in name else pytest.mark.ci)
        for name in OPTIONS
    ],
)
def test_numbers_of_compiled_options(name: str):
    """What an option adds to a step is compiled too, with the numbers of eager steps."""
    algo, spec = OPTIONS[name]
    eager, compiled = (run(algo, "torch", **spec, **how) for how in (EAGER, ALWAYS))
    expected = False if name == "agem with dropout" else "steps"
    assert compiled.algorithm.engine.execution["compiled"] == expected
    np.testing.assert_allclose(compiled.losses, eager.losses, atol=5e-5)
    for part, array in eager.arrays.items():
        np.testing.assert_allclose(compiled.arrays[part], array, atol=5e-5, err_msg=part)


def test_the_running_fisher_does_not_branch():
    """Its count is an array, which a compiled step cannot look at."""
    from seqrun.algorithms.ewc import EWCState
    from seqrun.algorithms.ewc.fisher.torch import running_state

    torch, every = of_torch.torch, 10
    zero = {"w": torch.zeros(2)}
    state = EWCState({}, {}, zero, zero, torch.zeros((), dtype=torch.int32), {})
    program = torch.compile(running_state, backend="eager", fullgraph=True)
    for count in range(1, 2 * every + 1):
        state = program(state, {"w": torch.tensor([1.0, float(count)])}, every)
    second = sum(k * k for k in range(1, every + 1))
    third = sum(k * k for k in range(every + 1, 2 * every + 1))
    expected = [0.9 + 0.09, 0.09 * (0.1 * second + third)]
    np.testing.assert_allclose(state.running["w"], expected, rtol=1e-6)
    assert not state.squares["w"].any()


@pytest.mark.full
@pytest.mark.parametrize(
    "algo",
    [algo for algo in ALGORITHMS if algo != "lamaml"],  # its unrolled steps take minutes
)
def test_numbers_equal_those_of_eager_steps(algo: str):
    """Every loss, parameter and state is equal up to float32 rounding over 54 steps."""
    network = {"backbone": {"width": 16, "dropout": 0.2 if algo == "naive" else 0.0}}
    stream: dict[str, Any] = {"benchmark": "rotated_digits"}
    if not admits(algo, {"benchmark": "rotated_digits"}):
        stream = {"benchmark": "split_digits", "stream": {"scenario": "class"}}
    eager, compiled = (run(algo, "torch", **stream, **network, **how) for how in (EAGER, ALWAYS))
    assert compiled.algorithm.engine.execution["compiled"]
    assert not eager.algorithm.engine.execution["compiled"]
    assert compiled.algorithm.progress.timing["compile_seconds"] > 0
    np.testing.assert_allclose(compiled.losses, eager.losses, atol=2e-5)
    for name, array in eager.arrays.items():
        np.testing.assert_allclose(compiled.arrays[name], array, atol=2e-5, err_msg=name)


CONVOLVES: dict[str, Any] = {
    "network": "cnn",
    "backbone": {"batch_norm": True, "dropout": 0.2},
    "benchmark": "split_digits",
    "stream": {"num_tasks": 2, "classes_per_task": 2},
}


@pytest.mark.ci
@pytest.mark.parametrize("algo", ["naive", pytest.param("er", marks=pytest.mark.full)])
def test_a_compiled_network(algo: str, monkeypatch: pytest.MonkeyPatch):
    """Losses, weights and statistics equal those of eager steps, with the same dropout."""
    monkeypatch.setattr(compiling, "WORTH_LESS_THAN", 0)
    eager, compiled = (
        run(algo, "torch", **CONVOLVES, training={"chunk_steps": 2, "compile": how})
        for how in ("never", "always")
    )
    assert compiled.algorithm.engine.execution["compiled"] == "network"
    np.testing.assert_allclose(compiled.losses, eager.losses, atol=2e-4)
    for name, array in eager.arrays.items():
        np.testing.assert_allclose(compiled.arrays[name], array, atol=2e-4, err_msg=name)


def test_which_passes_call_a_compiled_network(monkeypatch: pytest.MonkeyPatch):
    """Only training steps on full batches do, 4 per task; no partial batch, test or Fisher pass."""
    from seqrun.training.engine import torch as engine

    calls = []

    class Counting(of_torch.CompiledNetwork):
        def __call__(self, x: Any) -> Any:
            calls.append(len(x))
            return self._function(x)

    monkeypatch.setattr(compiling, "WORTH_LESS_THAN", 0)
    monkeypatch.setattr(engine, "CompiledNetwork", Counting)
    how = {"chunk_steps": 2, "epochs_per_task": 1, "compile": "always"}
    trace = run("ewc", "torch", **CONVOLVES, training=how)
    assert calls == [10] * 8
    assert len(trace.losses) == 10
    assert trace.algorithm.engine.network is trace.algorithm.module


def test_closing_one_program_keeps_the_settings_of_another():
    """Without them the other program could not compile its next shape."""
    import torch._dynamo as dynamo

    before = dynamo.config.trace_autograd_ops
    first, second = (of_torch.CompiledSteps(lambda *given: given) for _ in range(2))
    assert dynamo.config.trace_autograd_ops
    first.close()
    assert dynamo.config.trace_autograd_ops
    second.close()
    assert dynamo.config.trace_autograd_ops == before


class Counted(of_torch.CompiledSteps):
    """Stands in for a compiled program and counts its calls."""

    calls: list[tuple[int, int]]
    told: ClassVar[list[tuple[set[str], dict[str, Any]]]] = []
    has_captured = None

    def __init__(self, steps: Any, constants: Any, **options: Any) -> None:
        self.told.append((set(constants), options))
        self.steps, self.seconds, self.failure = steps, 0.0, None

    def end_chunk(self) -> None:
        """Do nothing."""

    def __call__(self, reads: Any, *rest: Any) -> Any:
        Counted.calls.append(tuple(reads["index"].y.shape))
        return self.steps(reads, *rest)

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    """Replace the compiled program by a Counted one."""
    from seqrun.training.engine import torch as engine

    Counted.calls = []
    monkeypatch.setattr(engine, "CompiledSteps", Counted)
    return Counted


def test_scalars_of_the_optimizer_except_lr_are_constants(counted: type[Counted]):
    """The learning rate changes from task to task. On a CPU nothing is captured."""
    run("ewc", "torch", training={"compile": "always", "epochs_per_task": 1})
    options = {"device": of_torch.torch.device("cpu"), "capture": None}
    assert counted.told[-1] == ({"momentum", "weight_decay"}, options)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_calls_are_captured_on_a_gpu(
    noise: float, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
):
    """Except for networks that draw noise."""
    from seqrun.training.engine import torch as engine

    algorithm = build("naive", "torch", backbone={"dropout": noise}, **ALWAYS)
    algorithm.fit()  # on the CPU
    algorithm.__dict__.pop("_program", None)
    algorithm.engine.device_kind = "cuda"
    monkeypatch.setattr(engine, "has_compiler", lambda kind: kind == "cuda")
    assert isinstance(algorithm.engine._program, counted)
    assert counted.told[-1][1]["capture"] is (None if noise else of_torch.capture_graph)


def test_segments_shorter_than_a_chunk_stay_eager(counted: type[Counted]):
    """The 8 full batches of 10 are compiled, the last batch of 5 is not."""
    run("naive", "torch", training={"compile": "always", "chunk_steps": 8, "epochs_per_task": 1})
    assert counted.calls == [(8, 10)] * 3


def test_the_remainder_of_a_chunk_runs_step_by_step(counted: type[Counted]):
    """Chunks have 3, 3 and 2 steps."""
    run("naive", "torch", training={"compile": "always", "chunk_steps": 3, "epochs_per_task": 1})
    assert counted.calls == [(1, 10)] * 24


def test_observing_between_compiled_steps_is_refused():
    """It would split programs of 8 steps, which changes the last bits of the numbers."""

    class Looking(BaseCallback):
        every_n_steps = 5

        def on_every_n_steps(self, run: Run, step: int) -> None:
            """Look at nothing."""

    with pytest.raises(ConfigError, match="training.compile='always': must be never with a callb"):
        run("naive", "torch", callbacks=[Looking()], training={"compile": "always"})


def test_observing_between_steps_keeps_them_eager(
    counted: type[Counted], monkeypatch: pytest.MonkeyPatch
):
    """With compile=auto such a callback turns compilation off instead of being refused."""

    class Looking(BaseCallback):
        every_n_steps = 5

        def on_every_n_steps(self, run: Run, step: int) -> None:
            """Look at nothing."""

    monkeypatch.setattr(compiling, "WORTH_STEPS", 10)
    trace = run("naive", "torch", callbacks=[Looking()], training={"chunk_steps": 3})
    assert not counted.calls
    assert trace.algorithm.engine.execution["compiled"] is False


def test_a_callback_with_step_hooks_keeps_steps_eager(counted: type[Counted]):
    """It runs on the host and could not be called inside a program."""
    seen: list[float] = []

    class Seeing(BaseCallback):
        def on_after_backward(self, run: Run, step: Any) -> None:
            """Record the loss."""
            seen.append(float(step.loss))

    how = {"compile": "always", "chunk_steps": 8, "epochs_per_task": 1}
    trace = run("naive", "torch", callbacks=[Seeing()], training=how)
    assert not counted.calls
    assert not trace.algorithm.engine.execution["compiled"]
    assert seen == [float(loss) for loss in trace.losses]


def test_the_rule_depends_on_planned_steps_and_work(
    counted: type[Counted], monkeypatch: pytest.MonkeyPatch
):
    """30,000 steps with a small network or on a GPU; ten minutes of training with convolutions."""
    for how, part in (
        ((30_000, 1_000_000, "cpu", False), "steps"),
        ((30_000, 1_000_000, "cpu", True), "steps"),
        ((29_999, 1_000_000, "cpu", False), None),
        ((10**6, 10**9, "cpu", False), None),
        ((30_000, 10**9, "cuda", True), "steps"),
        ((4000, 10**9, "cpu", True), "network"),
        ((3999, 10**9, "cpu", True), None),
    ):
        assert to_compile(*how) == part
    assert to_compile(1, 10**9, "cpu", True, always=True) == "network"
    assert to_compile(1, 10**9, "cpu", False, always=True) == "steps"
    run("naive", "torch", training={"chunk_steps": 3})
    assert not counted.calls
    monkeypatch.setattr(compiling, "WORTH_STEPS", 10)
    run("naive", "torch", training={"chunk_steps": 3})
    assert counted.calls


@pytest.fixture
def only_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let the machine have only clang++ and c++, which torch does not use by default."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import cpp_compiler_search

    for name in ("clang++", "c++"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_compiler_search.cache_clear()
    of_torch.has_compiler.cache_clear()
    with config.patch({"cpp.cxx": (None, "g++")}):
        yield tmp_path
    cpp_compiler_search.cache_clear()
    of_torch.has_compiler.cache_clear()


def test_without_a_compiler(only_others: Path, monkeypatch: pytest.MonkeyPatch):
    """auto runs eagerly; always is refused."""
    monkeypatch.setattr(compiling, "WORTH_STEPS", 10)
    eager = run("naive", "torch", training={"chunk_steps": 3})
    assert not eager.algorithm.engine.execution["compiled"]
    algorithm = build("naive", "torch", **ALWAYS)
    with pytest.raises(ConfigError, match="training.compile='always': needs a compiler"):
        algorithm.fit()


def test_has_compiler_agrees_with_torch(only_others: Path):
    """The compiler that CXX names, which torch reads when it is first imported."""
    from torch._inductor import config

    assert not of_torch.has_compiler("cpu")
    of_torch.has_compiler.cache_clear()
    with config.patch({"cpp.cxx": (None, str(only_others / "clang++"))}):
        assert of_torch.has_compiler("cpu")


def test_signals_are_blocked_during_a_call():
    """Ctrl-C during compilation would leave a half-written program in the cache."""
    steps = of_torch.CompiledSteps(lambda *_: None)
    steps._program = lambda *_: signal.pthread_sigmask(signal.SIG_BLOCK, [])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert steps(None, None, None, None, {}) >= {signal.SIGINT, signal.SIGTERM}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    steps.close()


@pytest.mark.ci
def test_a_half_written_program_in_the_cache(tmp_path: Path):
    """It is compiled again."""
    command = [sys.executable, "run.py", "algo=naive", "benchmark.samples_per_task=105"]
    command += ["backbone.width=16", "benchmark.num_tasks=1", "training.chunk_steps=8"]
    command += ["training.compile=always", "resume=never", f"hydra.run.dir={tmp_path}/run"]
    caches = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/caches"}
    for _ in range(2):
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300, env=caches
        )
        assert done.returncode == 0 and "uncompiled" not in done.stderr, done.stderr
        record = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
        assert record["execution"]["compiled"] == "steps"
        kept = sorted((tmp_path / "caches").rglob("*.main.so"))
        kept[0].write_bytes(kept[0].read_bytes()[:100])


def test_the_reason_why_something_cannot_be_compiled():
    """It has torch's debug context too, since "observed exception" alone says nothing."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("no such rate")

    steps = of_torch.CompiledSteps(refuse)
    with pytest.raises(RuntimeError, match="no such rate"):
        steps(None, None, None, None, {})
    steps.close()
    assert "RuntimeError('no such rate')" in steps.failure


class Branching(algorithm_class("naive", "torch")):  # type: ignore[misc]
    """Its step looks at an array, which no program can."""

    def losses(self, step: Any) -> Any:
        """Return naive's."""
        assert bool((step.batch.y >= 0).all())
        return super().losses(step)


@pytest.mark.ci
def test_what_cannot_be_compiled_runs_as_it_is(capsys: pytest.CaptureFixture[str]):
    """A warning and the record say so."""
    compiled, eager = (run("naive", "torch", kind=Branching, **h) for h in (ALWAYS, EAGER))
    assert not compiled.algorithm.engine.execution["compiled"]
    reason = compiled.algorithm.engine.execution["not_compiled_because"]
    assert f"warning: training runs uncompiled: {reason}\n" in capsys.readouterr().err
    assert (np.array(compiled.losses) == np.array(eager.losses)).all()


@pytest.mark.ci
def test_a_torch_that_cannot_compile_steps(monkeypatch: pytest.MonkeyPatch):
    """They run eagerly, and the record says why; a run that must compile is refused."""
    monkeypatch.setattr("seqrun.training.engine.torch.can_compile_steps", lambda: False)
    with pytest.raises(ConfigError, match="training.compile='always': torch .* cannot compile"):
        run("naive", "torch", **ALWAYS)
    monkeypatch.setattr("seqrun.training.engine.torch.to_compile", lambda *a, **k: "steps")
    execution = run("naive", "torch").algorithm.engine.execution
    assert not execution["compiled"] and "cannot compile" in execution["not_compiled_because"]

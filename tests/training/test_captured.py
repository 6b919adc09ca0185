"""Programs whose calls are captured once and replayed, as CUDA graphs are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from experiments import ALGORITHMS, admits, algorithm_class, run
from training.capturing import capture

from seqrun.training.engine.compile import torch as of_torch

torch = of_torch.torch


@pytest.fixture(autouse=True)
def newer_torch() -> None:
    """Skip a test where torch cannot compile steps."""
    if not of_torch.can_compile_steps():
        pytest.skip("needs a torch that compiles the gradients of a step")


class State(NamedTuple):
    """What a program carries from call to call."""

    total: Any
    kept: dict[str, Any]


def accumulate(x: Any, state: State, rate: Any) -> tuple[State, Any]:
    """Return a new total, change `kept` in place and leave one entry of it unchanged."""
    state.kept["sum"].add_(x.sum())
    return State(state.total + rate * x.sum(), state.kept), x * rate


def walk(program: Any) -> tuple[list[float], list[Any]]:
    """Call a program many times, with arguments of two shapes and changing values."""
    state = State(torch.zeros(()), {"sum": torch.zeros(()), "none": None})
    seen, results = [], []
    for n in range(24):
        x = torch.arange(3.0 + n % 2) + n
        state, result = program(x, state, torch.tensor(0.5 * n))
        results.append(result)
        seen += [float(state.total), float(state.kept["sum"])]
    return seen, results


def test_the_imitation_reads_the_same_arrays_and_changes_nothing_while_capturing():
    """It behaves like a CUDA graph; otherwise these tests would prove nothing."""
    place = {"x": torch.ones(2), "count": torch.zeros(())}
    replay = capture(lambda: place["x"] * place["count"].add_(1))
    assert float(place["count"]) == 0
    first, place["x"] = place["x"], torch.full((2,), 9.0)
    assert replay().tolist() == [1, 1]
    first.fill_(5)
    results = replay()
    assert results.tolist() == [10, 10] and float(place["count"]) == 2
    assert replay() is results and results.tolist() == [15, 15]


@pytest.mark.parametrize("waits", ["item", "mask", "assign"])
def test_the_imitation_refuses_operations_that_wait_for_the_device(waits: str):
    """Like a CUDA graph."""
    x = torch.arange(3.0)
    ways = {"item": lambda: float(x[0]), "mask": lambda: x[x > 1]}
    ways["assign"] = lambda: x.__setitem__(x > 1, torch.zeros(()))
    with pytest.raises(RuntimeError, match="not permitted"):
        capture(ways[waits])


def test_replays_equal_calls():
    """Changing values are arguments, and later replays do not change earlier results."""
    calls: list[int] = []

    def counted(x: Any, *rest: Any) -> Any:
        calls.append(len(x))
        return accumulate(x, *rest)

    program = of_torch.CapturedProgram(counted, capture)
    found, results = walk(program)
    expected, others = walk(accumulate)
    assert found == expected
    assert all((a == b).all() for a, b in zip(results, others, strict=True))
    assert program.has_captured
    before = of_torch.WARMUP_CALLS
    assert calls == [3, 4] * (before + 1)  # warm-up calls of each shape, then one capture


def test_clear_drops_captured_calls():
    """After `clear` a program reads arrays that hooks have replaced."""
    place = {"x": torch.ones(2)}
    program = of_torch.CapturedProgram(lambda y: place["x"] * y, capture)
    for x in (1.0, 7.0):
        place["x"] = torch.full((2,), x)
        program.clear()
        for y in range(12):
            assert program(torch.full((2,), float(y))).tolist() == [x * y, x * y]
    assert program.has_captured


def test_arguments_may_be_swapped():
    """The program returns its two arguments in the opposite order."""

    def turned(x: Any, y: Any) -> tuple[Any, Any]:
        x.add_(1)
        return y, x

    pairs = []
    for program in (turned, of_torch.CapturedProgram(turned, capture)):
        pair = torch.tensor(0.0), torch.tensor(100.0)
        for _ in range(15):
            pair = program(*pair)
        pairs.append([float(value) for value in pair])
    assert pairs[0] == pairs[1]


def test_arrays_on_two_devices_are_not_captured():
    """A CUDA graph would treat values computed on the host as constants."""
    program = of_torch.CapturedProgram(lambda *_: 1, capture)
    for _ in range(12):
        program(torch.ones(2), torch.ones((), device="meta"))
    assert not program.has_captured


def test_a_program_that_cannot_be_captured_is_called(capsys: pytest.CaptureFixture[str]):
    """There is one warning."""

    def refuse(call: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    program = of_torch.CapturedProgram(accumulate, refuse)
    assert walk(program)[0] == walk(accumulate)[0]
    assert not program.has_captured
    told = "training runs without CUDA graphs: operation not permitted when stream is capturing"
    assert capsys.readouterr().err == f"warning: {told}\n"


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Turn compilation off, capture calls after one with the same shapes, and count captures."""
    from seqrun.training.engine import torch as engine

    counted: list[int] = []

    def counting(call: Any) -> Any:
        counted.append(1)
        return capture(call)

    class Steps(of_torch.CompiledSteps):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"capture": counting})

        def lengths(self, steps: int) -> list[int]:
            return [2] * (steps // 2) + [1] * (steps % 2)

    monkeypatch.setattr(of_torch, "WARMUP_CALLS", 1)
    # As in compiled updates: the learning rate is an array, and Adam's counts are on the device.
    monkeypatch.setattr(of_torch.torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(of_torch.torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(engine, "CompiledSteps", Steps)
    return counted


COMPILED = [algo for algo in ALGORITHMS if algorithm_class(algo, "torch").is_compilable]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("algo", "optimizer"), [*((algo, "sgd") for algo in COMPILED), ("naive", "adam")]
)
def test_steps_of_every_algorithm_can_be_captured(
    algo: str, optimizer: str, captured: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Results are equal to the bit: other arrays that steps read keep their address in a chunk."""
    stream: dict[str, Any] = {"benchmark": "rotated_digits"}
    if not admits(algo, stream):
        stream = {"benchmark": "split_digits", "stream": {"scenario": "class"}}
    stream["optimizer"] = optimizer
    stream["optimizer_options"] = {"momentum": 0.9} if optimizer == "sgd" else {}
    if algo == "stable_sgd":
        stream["dropout"] = None  # with dropout an engine does not capture calls
    how = {"compile": "always", "chunk_steps": 8}
    found = run(algo, "torch", **stream, training=how)
    assert len(captured) >= 3
    assert found.algorithm.engine.execution["cuda_graphs"] is True
    monkeypatch.setattr(of_torch, "WARMUP_CALLS", 10**9)
    plain = run(algo, "torch", **stream, training=how)
    assert plain.algorithm.engine.execution["cuda_graphs"] is False
    np.testing.assert_array_equal(found.losses, plain.losses)
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)

"""Members meet at every call, one at a time works, and whoever ends is waited for no more."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqrun.training.engine.vmap import BaseVmapGroup, Call, Failure, Participant
from seqrun.training.engine.vmap import jax as vmap_groups
from seqrun.training.engine.vmap.jax import VmapGroup


class Adding(BaseVmapGroup):
    """Answers each call by the number of those who asked with it."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def answer(self, calls: Any) -> Any:
        self.rounds.append(len(calls))
        if any(call.name == "wrong" for call in calls.values()):
            wrong = {m for m, call in calls.items() if call.name == "wrong"}
            return {m: Failure(ValueError("no")) if m in wrong else 0 for m in calls}
        return dict.fromkeys(calls, len(calls))


def ask(member: Participant, name: str = "call", *args: Any, function: Any = None) -> Any:
    timing = {"compile_seconds": 0.0}
    return member.call(Call(name, function, args, timing))


def run(group: BaseVmapGroup, works: list[Any]) -> dict[int, Any]:
    """Run them with a limit of time; return what each ended with."""
    found: dict[int, Any] = {}
    thread = threading.Thread(target=group.run, args=(works, found.__setitem__), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return found


def test_those_who_end_are_waited_for_no_more():
    """Work of 0, 3, 1 and 3 calls; in the order given, one at a time."""
    log: list[str] = []
    at_work = 0

    def work_of(name: str, calls: int) -> Any:
        def work(member: Participant) -> list[int]:
            nonlocal at_work
            answers = []
            for _ in range(calls):
                at_work += 1
                assert at_work == 1
                log.append(name)
                at_work -= 1
                answers.append(ask(member))
            return answers

        return work

    group = Adding()
    found = run(group, [work_of(*w) for w in (("a", 0), ("b", 3), ("c", 1), ("d", 3))])
    assert found == {0: [], 1: [3, 2, 2], 2: [3], 3: [3, 2, 2]}
    assert "".join(log) == "bcdbdbd"
    assert group.rounds == [3, 2, 2, 0]


def test_an_error_reaches_those_who_asked():
    def caught(member: Participant) -> int:
        with pytest.raises(ValueError, match="no"):
            ask(member, "wrong")
        return ask(member)

    found = run(Adding(), [caught, lambda m: ask(m, "wrong"), lambda m: [ask(m), ask(m)]])
    assert found[0] == 2 and found[2] == [0, 2]
    assert isinstance(found[1], Failure) and isinstance(found[1].error, ValueError)


def test_a_signal_in_the_middle_ends_all():
    """Wherever they stand: in their first round, later, or not begun."""
    ended: list[str] = []

    class Interrupting(Adding):
        def answer(self, calls: Any) -> Any:
            if len(self.rounds) == 2:
                raise KeyboardInterrupt
            return super().answer(calls)

    def work(member: Participant) -> None:
        try:
            while True:
                ask(member)
        finally:
            ended.append("yes")

    with pytest.raises(KeyboardInterrupt):
        Interrupting().run([work, work, work], lambda place, result: None)
    assert len(ended) == 3
    with pytest.raises(ZeroDivisionError):
        Adding().run([lambda m: 0, work], lambda place, result: 1 / 0)
    assert len(ended) == 3


def add(x: Any, y: Any) -> Any:
    return x + y


def test_groups_of_an_engine():
    """By name and shapes; what is the same is not stacked; sizes are powers of two or all."""
    shared = jnp.ones(3)

    def work_of(value: float, calls: int, size: int) -> Any:
        def work(member: Participant) -> list[Any]:
            own = np.full(size, value, np.float32)
            one = shared if size == 3 else jnp.ones(size)
            return [np.asarray(ask(member, "add", one, own, function=add)) for _ in range(calls)]

        return work

    group = VmapGroup()
    works = [(1.0, 3, 3), (2.0, 3, 3), (3.0, 3, 3), (4.0, 2, 3), (5.0, 1, 3), (6.0, 2, 4)]
    found = run(group, [work_of(*w) for w in works])
    for place, (value, calls, size) in enumerate(works):
        assert len(found[place]) == calls
        for array in found[place]:
            np.testing.assert_array_equal(array, np.full(size, value + 1, np.float32))
    sizes = [key[2] for key in group._programs if key[1] != "alone"]
    assert sorted(sizes) == [4, 6], "five members fill six, four and three fill four"
    assert {key[1] for key in group._programs} - {"alone"} == {(True, False)}


def test_a_program_without_memory_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A device with room for seven of ten: parts of eight are too large, of four are not."""
    tried: list[int] = []
    original = VmapGroup._compiled

    def compiled(self: VmapGroup, key: Any, make: Any, args: Any) -> Any:
        tried.append(len(args[1][0]) if len(key) == 3 else 1)
        if tried[-1] > 7:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return original(self, key, make, args)

    monkeypatch.setattr(VmapGroup, "_compiled", compiled)

    def work_of(value: float) -> Any:
        x = np.full(3, value, np.float32)
        return lambda member: [np.asarray(ask(member, "add", x, x, function=add)) for _ in "ab"]

    found = run(VmapGroup(), [work_of(v) for v in range(10)])
    for place in range(10):
        np.testing.assert_array_equal(found[place], np.full((2, 3), 2 * place))
    assert tried == [10, 8, 4, 4, 2] + [4, 4, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("with ")[1] for line in lines] == [
        "10 runs in one program; 8 at a time",
        "8 runs in one program; 4 at a time",
    ]


def test_an_error_that_is_none_of_memory_is_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    tried: list[int] = []

    def compiled(self: VmapGroup, key: Any, make: Any, args: Any) -> Any:
        tried.append(1)
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    monkeypatch.setattr(VmapGroup, "_compiled", compiled)
    x = np.arange(2, dtype=np.float32)
    works = [lambda m, x=x + n: ask(m, "add", x, x, function=add) for n in range(4)]
    found = run(VmapGroup(), works)
    assert len(tried) == 1
    assert all("INTERNAL" in str(found[place].error) for place in range(4))


def test_one_alone_without_memory_fails(capsys: pytest.CaptureFixture[str]):
    """With jax's own error, of more bytes than there are addresses; it comes after the call."""

    def too_large(x: Any) -> Any:
        return jnp.sort(x + jax.lax.iota(jnp.float32, 1 << 46))[3]

    xs = [np.float32(n) for n in range(3)]
    works = [lambda m, x=x: ask(m, "sort", x, function=too_large) for x in xs]
    found = run(VmapGroup(), works)
    assert all("RESOURCE_EXHAUSTED" in str(found[place].error) for place in range(3))
    assert [line[-11:] for line in capsys.readouterr().err.splitlines()] == [
        "2 at a time",
        "1 at a time",
    ]


def test_functions_that_differ_are_kept_apart(capsys: pytest.CaptureFixture[str]):
    def work_of(value: float) -> Any:
        x = np.arange(3, dtype=np.float32) + value
        return lambda member: ask(member, "scale", x, function=lambda x: value * x)

    found = run(VmapGroup(), [work_of(v) for v in (2.0, 3.0, 4.0)])
    for place, value in enumerate((2.0, 3.0, 4.0)):
        expected = value * (np.arange(3, dtype=np.float32) + value)
        np.testing.assert_array_equal(found[place], expected)
    assert "scale: differs from run to run" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.float32, jnp.float32])
def test_values_between_the_ends_count(kind: Any):
    """2, 3, 2: what the first and the last have alike is not what all have."""
    x = np.arange(3, dtype=np.float32)

    def scale(value: Any, x: Any) -> Any:
        return value * x

    def work_of(value: Any) -> Any:
        return lambda member: ask(member, "scale", value, x, function=scale)

    two, three = kind(2), kind(3)
    found = run(VmapGroup(), [work_of(value) for value in (two, three, two)])
    for place, value in enumerate((2, 3, 2)):
        np.testing.assert_array_equal(found[place], value * x)


def test_compiling_is_told_to_all_who_waited_for_it():
    """And only once: the program is there when it is asked for again."""
    timings = [{"compile_seconds": 0.0} for _ in range(2)]
    seen: list[tuple[float, ...]] = []

    def work_of(timing: dict[str, float]) -> Any:
        def work(member: Participant) -> None:
            for _ in range(2):
                member.call(Call("add", add, (np.ones(3), np.ones(3)), timing))
                seen.append(tuple(t["compile_seconds"] for t in timings))

        return work

    run(VmapGroup(), [work_of(timing) for timing in timings])
    assert all(seconds > 0 for seconds in seen[0])
    assert len(set(seen)) == 1


def test_equal_data_are_found_while_they_are_held(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vmap_groups, "SHARED_BYTES", 16)
    group = VmapGroup()
    first = group.place(np.arange(8, dtype=np.float32), None)
    assert group.place(np.arange(8, dtype=np.float32), None) is first
    assert group.place(np.arange(8, dtype=np.int32), None) is not first
    assert group.place(np.arange(8, dtype=np.float32)[::-1], None) is not first
    assert group.place(np.arange(8, dtype=np.float32).reshape(2, 4), None).shape == (2, 4)
    tiny = np.zeros(1, np.float32)
    assert group.place(tiny, None) is not group.place(tiny, None)
    del first
    assert len(group._placed) == 0


def test_calls_made_alone_are_kept_apart_too():
    """Members that ask for one thing at different times share a program only if it is the same."""

    def work_of(value: float, order: tuple[str, str]) -> Any:
        x = np.arange(3, dtype=np.float32)
        return lambda member: [ask(member, name, x, function=lambda x: value * x) for name in order]

    group = VmapGroup()
    orders = ("a", "b"), ("b", "a")
    found = run(group, [work_of(v, o) for v, o in zip((2.0, 3.0), orders, strict=True)])
    for place, value in enumerate((2.0, 3.0)):
        for answer in found[place]:
            np.testing.assert_array_equal(answer, value * np.arange(3, dtype=np.float32))
    assert len(group._programs) == 4

    found = run(alike := VmapGroup(), [work_of(2.0, o) for o in orders])
    np.testing.assert_array_equal(found[0], found[1])
    assert len(alike._programs) == 2

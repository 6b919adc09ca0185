"""The ratios in the tables of `make bench`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from seqrun.callbacks import BaseCallback
from seqrun.cli.listing import CONF

BENCH = CONF.parent / "bench"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that imports a module of bench/, which is not a package, by its name."""
    monkeypatch.syspath_prepend(str(BENCH))
    names = [path.stem for path in BENCH.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def test_seeds_over_the_faster_single_run(module: Any):
    """10 seeds in 40 s and in 50 s; single runs in 8 and 10 s, or in 9 and 6 s."""
    found = module("many_seeds").over_single(10, [40.0, 50.0], [[8.0, 10.0], [9.0, 6.0]])
    assert found == pytest.approx(((10 * 8 / 40 + 10 * 6 / 50) / 2, 10 * 6 / 45))


def test_rates_over_the_faster_hand_written_loop(module: Any):
    """For each repetition, the faster one of one and two threads, of the same kind of loop."""
    beside_hand_written = module("beside_hand_written")
    rates = {
        ("hand_written", 1): [100.0, 300.0],
        ("hand_written", 2): [200.0, 200.0],
        ("hand_written compiled", 1): [900.0, 900.0],
        ("naive", 1): [100.0, 600.0],
        ("ewc", 1): [50.0, 150.0],
    }
    assert beside_hand_written.best_by_hand("", rates) == [200.0, 300.0]
    assert beside_hand_written._compared(("naive", 1), rates, []) == "1.25 of hand-written"
    assert beside_hand_written._compared(("hand_written", 1), rates, []) == "0.75 of the faster"
    assert beside_hand_written._compared(("ewc", 1), rates, []) == "3.00 x naive's time per step"


def test_rates_over_the_faster_peer(module: Any, monkeypatch: pytest.MonkeyPatch):
    """For each repetition; also for the faster backend of seqrun."""
    beside_peers = module("beside_peers")
    ours = iter([{"a": (60.0, "x"), "b": (90.0, "x")}, {"a": (80.0, "x"), "b": (40.0, "x")}])
    rates = {"slow": iter([10.0, 5.0]), "fast": iter([15.0, 20.0])}

    def ask(peer: str, *_: Any) -> dict[str, Any]:
        return {"rate": next(rates[peer]), "parts": {"reading_rate": 1.0}, "versions": {}}

    monkeypatch.setattr(beside_peers, "PEERS", tuple(rates))
    monkeypatch.setattr(beside_peers, "fastest_setting", lambda *_: (1, 0))
    monkeypatch.setattr(beside_peers, "seqrun", lambda *_: next(ours))
    monkeypatch.setattr(beside_peers, "ask", ask)
    rows = beside_peers._algorithm("naive", BENCH, 2, 9, None, "turning")
    told = {title: number for title, number, _ in rows}
    what = "Rotated MNIST naive, seqrun's better backend over the faster peer"
    assert told[what] == "5.0 (4.0-6.0)"


def test_threads_are_those_of_the_rule(module: Any):
    """A-GEM's memory batch of 256 gets two threads, the other steps get one."""
    threads_of = module("training").threads_of
    assert [threads_of(name, "cpu") for name in ("naive", "er compiled", "agem")] == [1, 1, 2]
    assert threads_of("agem", "cuda") == threads_of("roofline", "cpu") == 1


@pytest.mark.parametrize("name", ["first_chunk", "phases", "training", "convolution"])
def test_hooks_take_the_arguments_of_a_run(module: Any, name: str):
    """The hooks of every measuring callback have the base class's parameters."""
    hooks = [
        (hook, method)
        for kind in vars(module(name)).values()
        if inspect.isclass(kind) and issubclass(kind, BaseCallback)
        for hook, method in vars(kind).items()
        if hook.startswith("on_") and not kind.__module__.startswith("seqrun.")
    ]
    assert hooks
    for hook, method in hooks:
        parent = inspect.signature(getattr(BaseCallback, hook))
        assert list(inspect.signature(method).parameters) == list(parent.parameters), hook

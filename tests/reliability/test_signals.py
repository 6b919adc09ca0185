"""Signals at random steps of a run in this process."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reliability.small_runs import config_of, good_checkpoints

from seqrun.callbacks import Interrupted, InterruptionCallback
from seqrun.config.hash import config_hash
from seqrun.runs import runner


class Signalled(InterruptionCallback):
    """Raise signals, one right after the other, after a number of chunks."""

    def __init__(self, after: int, *numbers: signal.Signals) -> None:
        super().__init__()
        self.after, self.numbers = after, numbers

    def on_before_chunk(self, algorithm: Any, chunk: Any) -> None:
        """Count chunks and raise the signals."""
        self.after -= 1
        if self.after == -1:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.fixture(autouse=True)
def interrupts_reach_this_process():
    """Enable SIGINT, which is ignored if a shell started this process in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(config: dict, directory: Path, callback: InterruptionCallback) -> int:
    """Run until a signal interrupts the run, and return its number."""
    with pytest.raises(Interrupted) as caught, callback.listening():
        runner.run_experiment(config, directory, callback)
    assert (
        json.loads((directory / "results.json").read_text(encoding="utf-8"))["status"]
        == "interrupted"
    )
    return caught.value.number


@pytest.mark.ci
@pytest.mark.parametrize(
    ("seeds", "backend"),
    [
        ("0", "torch"),
        ("[0,1]", "torch"),
        ("[0,1]", "jax"),
        pytest.param("0", "jax", marks=pytest.mark.full),
    ],
)
def test_several_seeds_and_signals(
    seeds: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run is stopped twice, at random chunks (8 per seed) in either seed, and continued.

    The strategy must not depend on the number of remaining seeds: other threads give other bits.
    """
    numbers, built = [], []
    choose, build = runner.choose_strategy, runner._build_seed

    def told(*args: Any) -> str:
        numbers.append(args[-1])
        return choose(*args)

    def noted(config: Any, seed: int, *args: Any) -> Any:
        built.append(seed)
        return build(config, seed, *args)

    monkeypatch.setattr(runner, "choose_strategy", told)
    monkeypatch.setattr(runner, "_build_seed", noted)
    config = config_of("algo=er", f"seed={seeds}", f"backend={backend}")
    runner.run_experiment(config, tmp_path / "whole")
    rng = np.random.default_rng(len(seeds))
    places = sorted(rng.integers(1, 7, 2).tolist())
    if seeds != "0":
        places[1] = 8  # counted from the first stop, so it is in the second seed
    for place, number in zip(places, (signal.SIGTERM, signal.SIGINT), strict=True):
        assert interrupted(config, tmp_path / "cut", Signalled(place, number)) == number
    runner.run_experiment(config, tmp_path / "cut")
    assert numbers == [1 if seeds == "0" else 2] * 4
    assert built == ([0] * 4 if seeds == "0" else [0, 1, 0, 0, 1, 1])
    names = ["accuracy_matrix.csv"]
    folders = ["."] if seeds == "0" else ["seeds/0", "seeds/1"]
    last = good_checkpoints(tmp_path / "whole" / folders[-1], config_hash(config))[-1]
    for folder in folders:
        names += [f"{folder}/metrics.jsonl", f"{folder}/checkpoints/{last}/tensors.safetensors"]
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.ci
def test_a_second_interrupt_does_not_wait(tmp_path: Path):
    """It ends the run within the chunk, without a checkpoint; the run can still continue."""
    config = config_of("algo=er", "callbacks.checkpoint.every_epoch=false")
    twice = Signalled(3, signal.SIGINT, signal.SIGINT)
    assert interrupted(config, tmp_path / "run", twice) == signal.SIGINT
    assert good_checkpoints(tmp_path / "run", config_hash(config)) == []
    once = Signalled(3, signal.SIGINT)
    assert interrupted(config, tmp_path / "run", once) == signal.SIGINT
    assert len(good_checkpoints(tmp_path / "run", config_hash(config))) == 1
    runner.run_experiment(config, tmp_path / "run")


@pytest.mark.ci
def test_a_scheduler_may_repeat_itself(tmp_path: Path):
    """After SIGTERM and SIGUSR1 the run ends once, with a checkpoint."""
    config = config_of("algo=naive")
    callback = Signalled(2, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM)
    assert interrupted(config, tmp_path / "run", callback) == signal.SIGTERM
    assert good_checkpoints(tmp_path / "run", config_hash(config))[-1] == "000000006"

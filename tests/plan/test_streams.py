"""Random streams are independent, reproducible, and can have their own seeds."""

from __future__ import annotations

import numpy as np
import pytest

from seqrun.checks import ConfigError
from seqrun.plan import STREAMS, RandomStreams, batch_order, chunks


def draw(streams: RandomStreams, stream: str, *position: int) -> list[int]:
    return streams.generator(stream, *position).integers(0, 2**31, 8).tolist()


def test_every_stream_and_position_differs():
    streams = RandomStreams(0)
    seen = [draw(streams, s, *p) for s in STREAMS for p in ((), (1,), (2,), (1, 1), (1, 2))]
    assert len({tuple(x) for x in seen}) == len(seen)
    assert draw(RandomStreams(1), "data", 1) != draw(streams, "data", 1)


def test_a_generator_starts_anew():
    streams = RandomStreams(5)
    first = streams.generator("data", 1)
    first.random(100)
    assert draw(streams, "data", 1) == draw(RandomStreams(5), "data", 1)


@pytest.mark.parametrize("stream", STREAMS)
def test_an_override_moves_its_stream_alone(stream: str):
    plain, moved = RandomStreams(3), RandomStreams(3, {stream: 9})
    for other in STREAMS:
        assert (draw(plain, other, 1) == draw(moved, other, 1)) == (other != stream)
    assert draw(moved, stream, 1) == draw(RandomStreams(9), stream, 1)
    assert draw(RandomStreams(3, {stream: None}), stream) == draw(plain, stream)


def test_keys_are_63_bits_and_differ():
    keys = {RandomStreams(s).key("noise", p) for s in range(10) for p in range(10)}
    assert len(keys) == 100 and all(0 <= key < 2**63 for key in keys)


@pytest.mark.parametrize(
    ("seed", "overrides", "said"),
    [
        (-1, {}, "seed=-1"),
        (1.5, {}, "seed=1.5"),
        (0, {"dat": 1}, "streams.dat: must be one of .*did you mean data"),
        (0, {"data": -2}, "streams.data=-2"),
    ],
)
def test_bad_seeds_are_refused(seed, overrides, said):
    with pytest.raises(ConfigError, match=said):
        RandomStreams(seed, overrides)


@pytest.mark.parametrize(("samples", "batch", "steps", "rest"), [(10, 3, 3, 1), (9, 3, 3, 0)])
def test_an_epoch_reads_every_sample_once(samples, batch, steps, rest):
    full, partial = batch_order(RandomStreams(0), 1, 1, samples, batch)
    assert full.shape == (steps, batch) and partial.shape == ((1, rest) if rest else (0, 0))
    assert full.dtype == partial.dtype == np.int32
    order = np.concatenate([full.ravel(), partial.ravel()])
    assert sorted(order) == list(range(samples))


def test_epochs_and_tasks_are_shuffled_differently():
    orders = [batch_order(RandomStreams(0), t, e, 50, 10)[0] for t in (1, 2) for e in (1, 2)]
    assert len({order.tobytes() for order in orders}) == 4


def test_fewer_samples_than_a_batch_are_one_partial_batch():
    full, partial = batch_order(RandomStreams(0), 1, 1, 4, 10)
    assert full.shape == (0, 10) and partial.shape == (1, 4)


def test_chunks_lie_on_a_fixed_grid():
    parts = [{"index": np.arange(14).reshape(7, 2)}, {"index": np.array([[14]])}]
    cut = list(chunks(2, 3, 100, parts, 3))
    assert [(c.first_step, c.steps, c.batch_size) for c in cut] == [
        (100, 3, 2), (103, 3, 2), (106, 1, 2), (107, 1, 1),
    ]  # fmt: skip
    assert all((c.task, c.epoch) == (2, 3) for c in cut)
    read = np.concatenate([c.arrays["index"].ravel() for c in cut])
    assert read.tolist() == list(range(15))

"""The plan of an experiment: random decisions, drawn with NumPy before training as index arrays.

Nothing here depends on the model or the framework: the same seed gives the same batches, the same
memory and the same initial weights on both backends. `Dataset` is what the indices point into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from seqrun.checks import ConfigError, must_be_one_of, whole

STREAMS = ("init", "tasks", "data", "memory", "noise")
"""Names of the independent random streams.

"init" draws initial weights; "tasks" permutations, angles, class order and subsets; "data" batch
order and augmentation; "memory" reservoirs, coresets and replay batches; "noise" dropout and other
noise.
"""

AUGMENTATION = 2
"""Part of the position that separates augmentation from batch order in the stream "data"."""


@dataclass(frozen=True)
class RandomStreams:
    """Derive one independent NumPy generator per purpose from one seed.

    Args:
        seed: root seed of every stream, >= 0.
        overrides: stream name -> its own seed; None = the root seed.

    Raises:
        ConfigError: a negative seed or an unknown stream name.
    """

    seed: int = 0
    overrides: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0)
        for name, seed in self.overrides.items():
            if name not in STREAMS:
                raise ConfigError(f"streams.{name}: {must_be_one_of(STREAMS, name)}")
            if seed is not None:
                whole(f"streams.{name}", seed, 0)

    def generator(self, stream: str, *position: int) -> np.random.Generator:
        """Return a new generator of `stream` at `position` (task, epoch, ...)."""
        return np.random.Generator(np.random.PCG64(self._sequence(stream, position)))

    def key(self, stream: str, *position: int) -> int:
        """Return a 63-bit key of `stream` at `position`, the seed of a framework's generator."""
        return int(self._sequence(stream, position).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _sequence(self, stream: str, position: tuple[int, ...]) -> np.random.SeedSequence:
        override = self.overrides.get(stream)
        root = self.seed if override is None else override
        return np.random.SeedSequence([root, STREAMS.index(stream), *position])


@dataclass
class Chunk:
    """Consecutive training steps with batches of one shape, which an engine runs in one call.

    Attributes:
        task, epoch: 1-based position in the stream.
        first_step: 0-based global index of its first step.
        arrays: plan arrays, each with a leading step axis. "index" (steps, batch) int32 has row
            indices into the replay dataset. "augment/<name>" (steps, batch, 3) int32, if present,
            has crops and flips of the samples in "<name>". Replay methods add arrays.
        losses: (steps,) float32 task loss of each step, set by the engine.
        correct: (steps,) int number of samples of each batch that were classified correctly before
            the step, set by the engine.
        segment_steps: number of steps of the segment that the chunk is part of. A segment is the
            part of an epoch whose batches have the same shape.
    """

    task: int
    epoch: int
    first_step: int
    arrays: dict[str, np.ndarray]
    losses: np.ndarray | None = None
    correct: np.ndarray | None = None
    segment_steps: int = 0

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.arrays["index"])

    @property
    def batch_size(self) -> int:
        """Samples of the current task in each batch."""
        return self.arrays["index"].shape[1]


def batch_order(
    streams: RandomStreams, task: int, epoch: int, num_samples: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle a task's samples for one epoch.

    Returns:
        int32 row indices of the full batches, (num_samples // batch_size, batch_size), and of the
        partial last batch, (0 or 1, num_samples % batch_size).
    """
    order = streams.generator("data", task, epoch).permutation(num_samples).astype(np.int32)
    whole_batches = num_samples // batch_size
    cut = whole_batches * batch_size
    full = order[:cut].reshape(whole_batches, batch_size)
    partial = order[cut:].reshape(1 if cut < num_samples else 0, num_samples - cut)
    return full, partial


def augmentation(
    streams: RandomStreams,
    task: int,
    epoch: int,
    segments: list[dict[str, np.ndarray]],
    batches: Sequence[str],
    crop_padding: int,
    horizontal_flip: bool,
) -> list[dict[str, np.ndarray]]:
    """Draw crops and flips for all samples of an epoch.

    They are drawn for the whole epoch at once, separately for each plan array of batches. They
    therefore depend neither on the other arrays nor on where segments end. Flipping does not change
    the crops.

    Args:
        streams: the stream "data" is used.
        task, epoch: 1-based.
        segments: plan arrays of successive segments.
        batches: names of the plan arrays of batches, each (steps, B).
        crop_padding: p, the pixels of padding on each side that a crop may include, >= 0.
        horizontal_flip: flip each sample with probability 1/2.

    Returns:
        The segments with an additional "augment/<name>" (steps, B, 3) int32 for each of `batches`:
        the crop's first row and column in the padded image, both uniform in [0, 2p], and 1 if the
        image is flipped, else 0.
    """
    drawn = [dict(segment) for segment in segments]
    for number, name in enumerate(batches):
        rng = streams.generator("data", task, epoch, AUGMENTATION, number)
        samples = sum(segment[name].size for segment in segments)
        flips = rng.integers(2, size=(samples, 1), dtype=np.int32) * np.int32(horizontal_flip)
        crops = rng.integers(2 * crop_padding + 1, size=(samples, 2), dtype=np.int32)
        offsets = np.concatenate([crops, flips], axis=1)
        ends = np.cumsum([segment[name].size for segment in segments])
        for segment, own in zip(drawn, np.split(offsets, ends[:-1]), strict=True):
            segment[f"augment/{name}"] = own.reshape(*segment[name].shape, 3)
    return drawn


def chunks(
    task: int,
    epoch: int,
    first_step: int,
    segments: list[dict[str, np.ndarray]],
    chunk_steps: int,
) -> Iterator[Chunk]:
    """Split an epoch's plan into chunks of `chunk_steps` steps; the last one may be shorter.

    Args:
        task, epoch: 1-based.
        first_step: global index of the epoch's first step.
        segments: plan arrays of successive segments, each with batches of one shape.
        chunk_steps: largest number of steps of a chunk.
    """
    for arrays in segments:
        steps = len(arrays["index"])
        for start in range(0, steps, chunk_steps):
            segment = {name: a[start : start + chunk_steps] for name, a in arrays.items()}
            yield Chunk(task, epoch, first_step + start, segment, segment_steps=steps)
        first_step += steps


Rows = slice | np.ndarray
ALL_ROWS = slice(None)


class Dataset(NamedTuple):
    """Labelled samples in memory.

    Attributes:
        x: (N, H, W, C) uint8 images.
        y: (N,) int32 labels, as used in training.
        t: (N,) int32 tasks, 0-based.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray

    @classmethod
    def of_task(cls, x: np.ndarray, y: np.ndarray, task: int) -> Dataset:
        """Return a dataset with the samples of one task (1-based)."""
        return cls(x, y, np.full(len(y), task - 1, np.int32))

    def rows(self, rows: Rows) -> Dataset:
        """Return the samples with these row indices."""
        return self if rows is ALL_ROWS else Dataset(self.x[rows], self.y[rows], self.t[rows])

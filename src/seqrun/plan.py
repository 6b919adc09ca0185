"""All chance of an experiment, drawn once in NumPy as index arrays.

Nothing here depends on the model or on a framework: the same seed gives the same batches,
the same memory and the same initial weights on both backends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqrun.checks import ConfigError, nearest, whole

STREAMS = ("init", "tasks", "data", "memory", "noise")
"""Independent random streams: initial weights; permutations, angles, class order and subsets;
batch order and augmentation; reservoirs, coresets and replay reads; dropout and other noise."""

AUGMENTATION = 2
"""What sets augmentation apart from batch order within an epoch of the stream "data"."""


@dataclass(frozen=True)
class RandomStreams:
    """Derive one independent NumPy generator per purpose from one seed.

    Args:
        seed: root of every stream, >= 0.
        overrides: stream name -> seed of its own; None keeps the root seed.

    Raises:
        ConfigError: a negative seed or an unknown stream name.
    """

    seed: int = 0
    overrides: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0)
        for name, seed in self.overrides.items():
            if name not in STREAMS:
                allowed = ", ".join(STREAMS)
                raise ConfigError(
                    f"streams.{name}: must be one of {allowed}{nearest(name, STREAMS)}"
                )
            if seed is not None:
                whole(f"streams.{name}", seed, 0)

    def generator(self, stream: str, *position: int) -> np.random.Generator:
        """Return the generator of `stream` at `position` (task, epoch, ...), from its start."""
        return np.random.Generator(np.random.PCG64(self._sequence(stream, position)))

    def key(self, stream: str, *position: int) -> int:
        """Return a 63-bit integer key of `stream` at `position`, for a backend's own generator."""
        return int(self._sequence(stream, position).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _sequence(self, stream: str, position: tuple[int, ...]) -> np.random.SeedSequence:
        override = self.overrides.get(stream)
        root = self.seed if override is None else override
        return np.random.SeedSequence([root, STREAMS.index(stream), *position])


@dataclass
class Chunk:
    """A stretch of training steps with batches of one shape: what an engine runs in one call.

    Attributes:
        task, epoch: 1-based position in the stream.
        first_step: 0-based global index of its first step.
        arrays: per-step plan arrays, each with a leading step axis; "index" (steps, batch) int32
            holds rows of the task's pool; "augment/<name>" (steps, batch, 3) int32, when there,
            holds crops and flips of the samples in "<name>"; replay methods add their own.
        losses: (steps,) float32 task loss of each step, filled in by the engine.
        correct: (steps,) int number of samples of each batch classified correctly before the step.
        stretch: steps of the epoch's stretch of batches of this shape that it is cut from.
    """

    task: int
    epoch: int
    first_step: int
    arrays: dict[str, np.ndarray]
    losses: np.ndarray | None = None
    correct: np.ndarray | None = None
    stretch: int = 0

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
        Full batches (num_samples // batch_size, batch_size) and the partial last batch
        (0 or 1, num_samples % batch_size), both int32.
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
    parts: list[dict[str, np.ndarray]],
    reads: Sequence[str],
    crop_padding: int,
    horizontal_flip: bool,
) -> list[dict[str, np.ndarray]]:
    """Add crops and flips of all samples that an epoch reads.

    They are drawn read by read, for the epoch at once, so that neither other reads nor the place
    of a cut changes them; nor does flipping change the crops.

    Args:
        streams: the stream "data" is used.
        task, epoch: 1-based.
        parts: plan arrays of successive stretches.
        reads: names of the plan arrays that are read, each (steps, B).
        crop_padding: p, pixels around an image that a crop may reach into, >= 0.
        horizontal_flip: flip every other sample on average.

    Returns:
        The parts with "augment/<name>" (steps, B, 3) int32 for each read: the crop's first row and
        column in the padded image, both uniform in [0, 2p], and 1 where it is flipped, 0 elsewhere.
    """
    drawn = [dict(part) for part in parts]
    for number, name in enumerate(reads):
        rng = streams.generator("data", task, epoch, AUGMENTATION, number)
        samples = sum(part[name].size for part in parts)
        flips = rng.integers(2, size=(samples, 1), dtype=np.int32) * np.int32(horizontal_flip)
        crops = rng.integers(2 * crop_padding + 1, size=(samples, 2), dtype=np.int32)
        offsets = np.concatenate([crops, flips], axis=1)
        ends = np.cumsum([part[name].size for part in parts])
        for part, own in zip(drawn, np.split(offsets, ends[:-1]), strict=True):
            part[f"augment/{name}"] = own.reshape(*part[name].shape, 3)
    return drawn


def chunks(
    task: int,
    epoch: int,
    first_step: int,
    parts: list[dict[str, np.ndarray]],
    chunk_steps: int,
) -> Iterator[Chunk]:
    """Cut an epoch's plan into chunks on a fixed grid.

    Args:
        task, epoch: 1-based.
        first_step: global index of the epoch's first step.
        parts: plan arrays of successive stretches; batches within a part have one shape.
        chunk_steps: longest chunk.
    """
    for arrays in parts:
        steps = len(arrays["index"])
        for start in range(0, steps, chunk_steps):
            piece = {name: a[start : start + chunk_steps] for name, a in arrays.items()}
            yield Chunk(task, epoch, first_step + start, piece, stretch=steps)
        first_step += steps


def describe(streams: RandomStreams) -> dict[str, Any]:
    """Return the streams as plain data for a record."""
    return {"seed": streams.seed, **{k: v for k, v in streams.overrides.items() if v is not None}}

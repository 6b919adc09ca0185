"""Random crops and flips: how they are planned, and that only training batches get them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from algorithms.side_effects import jax_in_full
from comparison import assert_same_run
from experiments import ALGORITHMS, BACKENDS, SMALL, every_backend, run, shared_run
from parity.cases import SMALLER, Case, suited

from seqrun.benchmarks import RotatedDigits
from seqrun.callbacks import BaseCallback
from seqrun.checks import ConfigError
from seqrun.plan import AUGMENTATION, RandomStreams, augmentation, batch_order
from seqrun.training.callback import Run

ON = {"crop_padding": 2, "horizontal_flip": True}
REPLAYS: list[Any] = [("derpp", "torch"), ("lamaml", "torch")]
REPLAYS += [pytest.param(algo, "jax", marks=pytest.mark.full) for algo in ("derpp", "lamaml")]
SHORT: dict[str, Any] = {
    "stream": {"samples_per_task": 45, **ON},
    "training": {"epochs_per_task": 1},
}


def by_torchvision(image: np.ndarray, offsets: np.ndarray, padding: int) -> np.ndarray:
    """Return one uint8 (H, W, C) image padded, cropped and flipped by torchvision."""
    from torch import from_numpy
    from torchvision.transforms import functional

    dy, dx, flip = map(int, offsets)
    chw = from_numpy(np.array(image)).permute(2, 0, 1)
    crop = functional.crop(functional.pad(chw, [padding] * 4), dy, dx, *image.shape[:2])
    return (functional.hflip(crop) if flip else crop).permute(1, 2, 0).numpy()


def augmented(backend: str, images: np.ndarray, index: Any, offsets: Any, p: int) -> np.ndarray:
    """Return some of the images, augmented on a backend."""
    if backend == "jax":
        import jax

        from seqrun.formulas.augmentation.jax import augmented

        return np.array(jax.jit(augmented, static_argnums=3)(images, index, offsets, p))
    from torch import from_numpy

    from seqrun.formulas.augmentation.torch import augmented

    return augmented(from_numpy(images), from_numpy(index), from_numpy(offsets), p).numpy()


@every_backend
@pytest.mark.parametrize(("shape", "padding"), [((5, 7, 3), 2), ((4, 4, 1), 0), ((3, 6, 2), 4)])
def test_every_offset_equals_torchvision(backend: str, shape: tuple[int, ...], padding: int):
    """All crops of several images, flipped or not, also those entirely in the padding."""
    images = np.random.default_rng(0).integers(1, 256, (3, *shape)).astype(np.uint8)
    sides = np.arange(2 * padding + 1)
    offsets = np.stack(np.meshgrid(sides, sides, [0, 1]), -1).reshape(-1, 3).astype(np.int32)
    index = np.arange(len(offsets), dtype=np.int32)[::-1].copy() % 3
    made = augmented(backend, images, index, offsets, padding)
    assert made.dtype == np.uint8
    for row, chosen, image in zip(index, offsets, made, strict=True):
        np.testing.assert_array_equal(image, by_torchvision(images[row], chosen, padding))
    assert augmented(backend, images, index[:0], offsets[:0], padding).shape == (0, *shape)


def planned(padding: int = 4, flip: bool = True, **options: Any) -> np.ndarray:
    """Return the (N, 3) offsets of an epoch of 40,000 samples."""
    given = {"seed": 0, "task": 1, "epoch": 1, "batch_size": 64} | options
    streams = RandomStreams(given["seed"])
    position = given["task"], given["epoch"]
    orders = batch_order(streams, *position, 40_000, given["batch_size"])
    parts = [{"index": order} for order in orders if len(order)]
    drawn = augmentation(streams, *position, parts, ["index"], padding, flip)
    for part in drawn:
        assert part["augment/index"].shape == (*part["index"].shape, 3)
        assert part["augment/index"].dtype == np.int32
    return np.concatenate([part["augment/index"].reshape(-1, 3) for part in drawn])


def test_offsets_are_uniform_and_independent():
    """All 9 x 9 x 2 offsets are equally frequent: chi-squared test, 161 degrees of freedom."""
    offsets = planned()
    counts = np.zeros((9, 9, 2))
    np.add.at(counts, tuple(offsets.T), 1)
    expected = len(offsets) / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - 161) < 4 * np.sqrt(2 * 161)
    assert abs(counts[..., 1].sum() / len(offsets) - 0.5) < 4 * 0.5 / np.sqrt(len(offsets))
    # offsets of successive samples are independent
    assert abs(np.corrcoef(offsets[:-1, 0], offsets[1:, 0])[0, 1]) < 4 / np.sqrt(len(offsets))


def test_offsets_depend_on_seed_task_and_epoch_alone():
    plain = planned()
    np.testing.assert_array_equal(plain, planned(batch_size=999))
    for name in ("seed", "task", "epoch"):
        assert (plain != planned(**{name: 2})).any(1).mean() > 0.9, name
    # crops do not depend on flips, nor flips on crops
    np.testing.assert_array_equal(planned(flip=False), plain * [1, 1, 0])
    np.testing.assert_array_equal(planned(padding=0), plain * [0, 0, 1])


def test_each_kind_of_batch_has_its_own_offsets_wherever_segments_end():
    streams = RandomStreams(3)
    index, replay = np.zeros((2, 12, 5), np.int32)
    whole = [{"index": index, "replay": replay}]
    cut = [{"index": index[a:b], "replay": replay[a:b]} for a, b in [(0, 1), (1, 7), (7, 12)]]
    once, pieces = (
        augmentation(streams, 2, 1, parts, ["index", "replay"], 3, True) for parts in (whole, cut)
    )
    assert sorted(whole[0]) == ["index", "replay"], "the plan given is left alone"
    for name in ("augment/index", "augment/replay"):
        joined = np.concatenate([part[name] for part in pieces])
        np.testing.assert_array_equal(joined, once[0][name])
    assert (once[0]["augment/index"] != once[0]["augment/replay"]).any(2).mean() > 0.8
    alone = augmentation(streams, 2, 1, [{"index": index}], ["index"], 3, True)
    np.testing.assert_array_equal(alone[0]["augment/index"], once[0]["augment/index"])


@dataclass
class Batches(BaseCallback):
    """Record the stored (uint8) samples that every step reads.

    Attributes:
        plans: per step, its row of every plan array.
        inputs: per step, name of a batch -> (B, H, W, C).
        datasets: per step, the images of the replay dataset.
    """

    plans: list[dict[str, np.ndarray]] = field(default_factory=list)
    inputs: list[dict[str, np.ndarray]] = field(default_factory=list)
    datasets: list[np.ndarray] = field(default_factory=list)

    def on_before_backward(self, run: Run, step: Any) -> None:
        """Record the step's samples."""
        self.plans.append({name: np.asarray(row) for name, row in step.arrays.items()})
        pixels = {name: np.asarray(read.x) * 255 for name, read in step.batches.items()}
        self.inputs.append({name: x.round().astype(np.uint8) for name, x in pixels.items()})
        self.datasets.append(np.asarray(step.dataset.x))


@cache
def recorded(algo: str, backend: str) -> Batches:
    """Return the batches of a short run with augmentation."""
    batches = Batches()
    run(algo, backend, callbacks=[batches], **SHORT | SMALLER.get(algo, {}))
    return batches


@pytest.mark.parametrize(("algo", "backend"), REPLAYS)
def test_steps_get_what_was_planned(algo: str, backend: str):
    """Batches of the current task and of the memory, including glances and partial batches."""
    batches = recorded(algo, backend)
    replayed = 0
    for plan, inputs, pool in zip(batches.plans, batches.inputs, batches.datasets, strict=True):
        assert set(inputs) >= {"index", "replay"}
        for name, x in inputs.items():
            offsets = plan[f"augment/{name}"]
            desired = [
                by_torchvision(pool[i], o, 2) for i, o in zip(plan[name], offsets, strict=True)
            ]
            np.testing.assert_array_equal(x, np.array(desired, np.uint8).reshape(x.shape))
        replayed += len(inputs["replay"])
    assert {len(inputs["index"]) for inputs in batches.inputs} == {10, 5}
    assert replayed


@pytest.mark.ci
@pytest.mark.parametrize("algo", ["derpp", pytest.param("lamaml", marks=pytest.mark.full)])
def test_backends_read_the_same_batches(algo: str):
    torch, jax = (recorded(algo, backend) for backend in BACKENDS)
    for here, there in zip(torch.inputs, jax.inputs, strict=True):
        assert list(here) == list(there)
        for name, x in here.items():
            assert x.tobytes() == there[name].tobytes()


IN_DEFAULT = ("naive", "er", "icarl")


@pytest.mark.ci
@pytest.mark.parametrize(
    "algo",
    [pytest.param(a, marks=[] if a in IN_DEFAULT else pytest.mark.full) for a in ALGORITHMS],
)
def test_backends_agree_with_augmentation(algo: str):
    """Losses, final arrays and the matrix agree, and differ from training without augmentation."""
    case = suited(algo, Case(SHORT))
    torch, jax = (run(algo, backend, **case.spec) for backend in BACKENDS)
    assert_same_run(jax, torch, case.tolerance)
    plain = run(algo, "torch", **case.spec | {"stream": {"samples_per_task": 45}})
    assert abs(plain.losses - torch.losses).max() > 1e-3
    np.testing.assert_array_equal(plain.matrix[0], torch.matrix[0])


@jax_in_full
def test_chunks_of_another_length_see_the_same_augmentation(backend: str):
    first, second = (
        run("er", backend, **SHORT | {"training": {"epochs_per_task": 1, "chunk_steps": steps}})
        for steps in (1, 3)
    )
    np.testing.assert_allclose(first.losses, second.losses, atol=1e-6)


def test_off_is_as_if_there_were_none(monkeypatch: pytest.MonkeyPatch):
    """There are no plan arrays, and offsets that change nothing give the same bits."""
    batches = Batches()
    run("er", "torch", callbacks=[batches], training={"epochs_per_task": 1})
    assert not any(name.startswith("augment") for name in batches.plans[0])
    plain = shared_run("er", "torch")

    def none(*given: Any) -> list[dict[str, np.ndarray]]:
        parts = augmentation(*given[:-2], 0, False)
        assert all((part["augment/index"] == 0).all() for part in parts)
        return parts

    monkeypatch.setattr("seqrun.training.trainer.augmentation", none)
    still = run("er", "torch", stream={"horizontal_flip": True})
    assert still.losses.tobytes() == plain.losses.tobytes()


def test_batch_order_and_memory_are_those_without():
    """Plan arrays are the same, and the memory holds stored images, not augmented ones."""

    class Memory(Batches):
        def on_after_task(self, run: Run) -> None:
            self.stored = np.array(run.algorithm.memory.data.x)
            self.original = np.array(run.algorithm.benchmark.task_data(run.task).x)
            self.tasks = np.array(run.algorithm.memory.data.t)

    plain, changed = Memory(), Memory()
    for callback, options in ((plain, {}), (changed, ON)):
        stream = {"samples_per_task": 45} | options
        run("er", "torch", callbacks=[callback], stream=stream, training=SHORT["training"])
    for here, there in zip(plain.plans, changed.plans, strict=True):
        for name, row in here.items():
            np.testing.assert_array_equal(row, there[name])
    np.testing.assert_array_equal(plain.stored, changed.stored)
    originals = {image.tobytes() for image in changed.original}
    of_last_task = changed.stored[changed.tasks == changed.tasks.max()]
    assert len(of_last_task) and all(image.tobytes() in originals for image in of_last_task)


@jax_in_full
def test_evaluation_and_own_passes_see_stored_images(backend: str):
    """With constant weights, EWC's Fisher and the matrix do not change."""
    still = {"optimizer_options": {"lr": 1e-12}, "training": {"epochs_per_task": 1}}
    plain, changed = (
        run("ewc", backend, stream={"samples_per_task": 45, **options}, **still)
        for options in ({}, ON)
    )
    np.testing.assert_array_equal(plain.matrix, changed.matrix)
    assert (plain.losses != changed.losses).all()
    importance = [name for name in plain.arrays if name.startswith("state/importance/")]
    assert importance
    for name in importance:
        np.testing.assert_allclose(changed.arrays[name], plain.arrays[name], rtol=1e-5, atol=1e-9)


def test_bad_values_are_refused():
    options = SMALL["rotated_digits"]
    for key, value in (("crop_padding", -1), ("crop_padding", 1.5), ("horizontal_flip", 1)):
        with pytest.raises(ConfigError, match=f"benchmark.{key}={value}: must be "):
            RotatedDigits(**options | {key: value})


def test_the_stream_of_batch_order_is_another():
    """Batch order, La-MAML and augmentation use different positions in the stream "data"."""
    streams = RandomStreams(0)
    positions = [(1, 1), (1, 1, 1), (1, 1, AUGMENTATION, 0), (1, 1, AUGMENTATION, 1)]
    first = [streams.generator("data", *p).integers(2**62) for p in positions]
    assert len(set(first)) == len(first)

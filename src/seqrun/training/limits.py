"""What a run needs, known before it trains: steps, work and the machine's memory.

Memory is estimated from shapes.
The parts are arrays whose sizes are known: network and states twice (a step's gradients and new
values, or a checkpoint's copy), the largest task's training data and the test data twice (host and
device), a full replay memory twice, an epoch's plan, and the inputs that are gathered for a chunk.
Activations, the frameworks themselves and what is there already are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from seqrun.backbones.base import multiply_adds
from seqrun.checks import ConfigError
from seqrun.training.algorithm import BaseAlgorithm

OWN_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
INDEX_BYTES = 4
LABEL_BYTES = 8
"""Of a sample's label and task."""
MOST_COPIES = 10
"""Arrays of a weight's size in a run's states, besides one per task: no algorithm has as many."""


# ---- steps and work


def work_per_batch(algorithm: BaseAlgorithm) -> int:
    """Return the multiply-adds of one step's forward pass; the engine has started."""
    images = algorithm.benchmark.input_shape
    convolutions = algorithm.backbone.convolutions(images)
    per_sample = multiply_adds(algorithm.engine.parameter_shapes(), images, convolutions)
    return per_sample * algorithm.samples_per_step()


def chunk_rule(multiply_adds_per_batch: int, input_bytes_per_batch: int) -> int:
    """Return the steps per chunk: about a quarter of a second, within 64 MiB of inputs.

    A step costs about three forward passes; 2 cores were measured at about 40 G multiply-adds
    per second. Between 1 and 1000, and never a matter of timing, so that a run always cuts its
    plan at the same places.
    """
    by_time = 1e10 / (3 * multiply_adds_per_batch)
    by_memory = 2**26 / input_bytes_per_batch
    return int(max(1, min(1000, by_time, by_memory)))


def plan_lengths(algorithm: BaseAlgorithm) -> None:
    """Count the run's steps and choose the length of chunks; the engine has started."""
    engine, benchmark = algorithm.engine, algorithm.benchmark
    engine.total_steps, longest = 0, 1
    for task in algorithm.trained_tasks():
        size, batch_size = algorithm.training_size(task), benchmark.batch_size_of(task)
        longest = max(longest, size // batch_size)
        engine.total_steps += algorithm.batches(task) * algorithm.steps_per_batch
    input_bytes = 4 * algorithm.samples_per_step() * math.prod(benchmark.input_shape)
    rule = algorithm.training.chunk_steps or chunk_rule(work_per_batch(algorithm), input_bytes)
    engine.chunk_steps = engine.execution["chunk_steps"] = min(rule, longest)


def planned_samples(algorithm: BaseAlgorithm) -> int:
    """Prepare the data; return the samples that a run trains on, each as often as it does."""
    algorithm.benchmark.prepare(algorithm.random)
    return sum(
        min(
            algorithm.training_size(task) * algorithm.epochs(task),
            algorithm.batches(task) * algorithm.benchmark.batch_size_of(task),
        )
        for task in algorithm.trained_tasks()
    )


# ---- batches of one sample


def check_lengths_beforehand(algorithm: BaseAlgorithm) -> None:
    """Prepare the data and check the lengths of batches before anything starts.

    Raises:
        ConfigError: of preparing, or of `check_lengths`.
    """
    algorithm.benchmark.prepare(algorithm.random)
    if not algorithm.backbone.has_batch_statistics and _single_samples(algorithm):
        algorithm.engine.start()  # builds the network
        algorithm.engine.stop()
    check_lengths(algorithm)


def check_lengths(algorithm: BaseAlgorithm) -> None:
    """Raise ConfigError if BatchNorm is given a batch of one sample; the data are prepared."""
    if algorithm.backbone.has_batch_statistics and (wrong := _single_samples(algorithm)):
        raise ConfigError(f"{wrong}, which BatchNorm cannot normalise")


def _single_samples(algorithm: BaseAlgorithm) -> str:
    """Say which batches of training samples have one sample; "" = none."""
    for task in algorithm.trained_tasks():
        size, batch_size = algorithm.training_size(task), algorithm.benchmark.batch_size_of(task)
        if batch_size == 1 or size % batch_size == 1:
            which = "every batch" if batch_size == 1 else "the last batch"
            return (
                f"benchmark.batch_size={batch_size}: {which} of task {task} ({size} samples) "
                "has one sample"
            )
    return ""


# ---- memory


def check_size(algorithm: BaseAlgorithm) -> None:
    """Raise ConfigError if weights and states cannot fit, as far as that is known before data.

    A module of someone else's is not made just to see how large it is.
    """
    is_known = all(map(algorithm.benchmark.knows, ("input_shape", "num_classes")))
    if not is_known or "own" in algorithm.backbone.initializations:
        return
    engine = algorithm.engine
    try:
        weights = engine.carried_bytes(states=False)
    except (OverflowError, RuntimeError, TypeError) as error:  # beyond what a shape can be
        reason = str(error).partition("\n")[0]
        sized_by = algorithm.backbone.sized_by
        raise ConfigError(f"{sized_by}: cannot be built: {reason}") from error
    refuse_what_cannot_fit([weights_need(algorithm, weights)])
    if not fits([weights_need(algorithm, weights * (algorithm.num_tasks + MOST_COPIES))]):
        carried = engine.carried_bytes(states=True)
        refuse_what_cannot_fit([weights_need(algorithm, carried)])


@dataclass(frozen=True)
class Need:
    """A part of the memory that a run needs.

    Attributes:
        name: in words.
        key: "key=value" of the option that it follows from most.
        num_bytes: its size.
    """

    name: str
    key: str
    num_bytes: int


def needs_of(algorithm: BaseAlgorithm) -> list[Need]:
    """Return what a run needs whose benchmark is prepared and whose engine has started.

    States are counted as soon as they are there.
    """
    benchmark, options = algorithm.benchmark, algorithm.training
    pixels = math.prod(benchmark.input_shape)
    sample = pixels + LABEL_BYTES
    tasks = range(1, algorithm.num_tasks + 1)
    most = max(algorithm.training_size(t) for t in algorithm.trained_tasks())
    splits = {algorithm.measured_on, algorithm.selected_on} - {None}
    tested = sum(benchmark.task_size(t, split) for t in tasks for split in splits if split)
    weights = sum(map(math.prod, algorithm.engine.parameter_shapes().values())) * 4
    states = [*algorithm.engine.state_arrays(), algorithm.persistent]
    per_step = algorithm.samples_per_step()
    gathered = min(algorithm.engine.gathered_steps, algorithm.engine.chunk_steps)
    smallest = min(benchmark.batch_size_of(t) for t in tasks)
    steps = math.ceil(most / smallest)
    parts = [
        weights_need(algorithm, weights + array_bytes(states)),
        Need(
            "data",
            f"benchmark.samples_per_task={benchmark.samples_per_task}",
            2 * sample * (most + tested),
        ),
        Need(
            "plan of an epoch",
            f"benchmark.batch_size={benchmark.batch_size}",
            2 * INDEX_BYTES * steps * per_step,
        ),
        Need(
            "inputs of a chunk",
            f"training.chunk_steps={options.chunk_steps}",
            4 * gathered * per_step * pixels,
        ),
    ]
    mechanism = getattr(algorithm, "memory", None)
    if mechanism is not None:
        budgets = ("memory_size", "per_task_memory_samples")
        key = next(b for b in budgets if getattr(mechanism, b) is not None)
        size = 2 * sample * mechanism.capacity(algorithm.num_tasks)
        parts.append(Need("replay memory", f"algo.{key}={getattr(mechanism, key)}", size))
    return parts


def weights_need(algorithm: BaseAlgorithm, num_bytes: int) -> Need:
    """Return the need of network and states of `num_bytes`, which are there twice."""
    return Need("network and states", algorithm.backbone.sized_by, 2 * num_bytes)


def refuse_what_cannot_fit(parts: Iterable[Need], available: int | None = None) -> None:
    """Raise ConfigError if the parts are larger together than the memory that is available.

    Args:
        parts: what is needed.
        available: bytes; None = what there is now.
    """
    parts = list(parts)
    available = available_bytes() if available is None else available
    if fits(parts, available):
        return
    ordered = sorted(parts, key=lambda part: -part.num_bytes)
    needed = sum(part.num_bytes for part in ordered)
    large = [part for part in ordered if part.num_bytes >= needed / 100]
    listed = ", ".join(f"{p.name} {_gib(p.num_bytes)} ({p.key})" for p in large)
    raise ConfigError(
        f"{ordered[0].key}: must need less memory: the run needs about {_gib(needed)}, "
        f"{_gib(available)} are available; {listed}"
    )


def fits(parts: Iterable[Need], available: int | None = None) -> bool:
    """Return whether the parts fit together into what is available, as `refuse_what_cannot_fit`."""
    available = available_bytes() if available is None else available
    return sum(part.num_bytes for part in parts) <= available


def available_bytes() -> int:
    """Return the memory that this process can still use: the machine's, or its cgroups' limit."""
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    return min([free, *(left for folder, names in _cgroups() for left in _left_in(folder, *names))])


def total_bytes() -> int:
    """Return the memory that this process could use at most: the machine's, or a cgroup's limit."""
    found = [psutil.virtual_memory().total]
    for folder, (limit, *_) in _cgroups():
        with suppress(OSError, ValueError):  # "max" is no number, and no limit
            found.append(_number(folder / limit))
    return min(found)


def _cgroups() -> list[tuple[Path, tuple[str, str, str]]]:
    """Return the folder of each cgroup that this process is in, and the names of its files.

    A cgroup limits what a container or a batch job may use; Linux alone has them.
    """
    found: list[tuple[Path, tuple[str, str, str]]] = []
    with suppress(OSError):
        for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            names = ("memory.max", "memory.current", "inactive_file")
            top = CGROUPS
            if "memory" in controllers.split(","):  # version 1
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                top = CGROUPS / "memory"
            elif controllers:
                continue
            own = top / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder == top or top in folder.parents:
                    found.append((folder, names))
    return found


def _left_in(folder: Path, limit: str, used: str, reclaimable: str) -> list[int]:
    with suppress(OSError, ValueError):  # "max" is no number, and no limit
        room = _number(folder / limit) - _number(folder / used)
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        return [max(0, room + int(dict(map(str.split, lines)).get(reclaimable, 0)))]
    return []


def _number(file: Path) -> int:
    return int(file.read_text(encoding="utf-8"))


def array_bytes(value: Any) -> int:
    """Return the bytes of all arrays in nested containers."""
    if isinstance(value, Mapping):
        return array_bytes(list(value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(array_bytes, value))
    return int(getattr(value, "nbytes", 0))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"

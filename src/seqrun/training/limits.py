"""What a run needs of the machine's memory, estimated from shapes before it trains.

The parts are arrays whose sizes are known: network and states twice (a step's gradients and new
values, or a checkpoint's copy), the largest task's training data and the test data twice (host and
device), a full replay memory twice, an epoch's plan, and the inputs that are gathered for a chunk.
Activations, the frameworks themselves and what is there already are not counted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrun.checks import ConfigError

if TYPE_CHECKING:
    from seqrun.algorithms.base import BaseAlgorithm

MEMINFO = Path("/proc/meminfo")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
INDEX_BYTES = 4
LABEL_BYTES = 8
"""Of a sample's label and task."""


@dataclass(frozen=True)
class Part:
    """A share of what a run needs.

    Attributes:
        name: in words.
        key: "key=value" of the option that it follows from most.
        num_bytes: its size.
    """

    name: str
    key: str
    num_bytes: int


def parts_of(algorithm: BaseAlgorithm) -> list[Part]:
    """Return what a run needs whose benchmark is prepared and whose engine has started.

    States are counted as soon as they are there.
    """
    benchmark, options = algorithm.benchmark, algorithm.training
    pixels = math.prod(benchmark.input_shape or ())
    sample = pixels + LABEL_BYTES
    tasks = range(1, algorithm.num_tasks + 1)
    most = max(algorithm.training_size(t) for t in algorithm.trained_tasks())
    tested = sum(benchmark.task_size(t, benchmark.evaluation_split) for t in tasks)
    weights = sum(map(math.prod, algorithm.parameter_shapes().values())) * 4
    per_step = algorithm.samples_per_step()
    gathered = min(algorithm.gathered_steps, algorithm.chunk_steps)
    smallest = min(benchmark.batch_size_of(t) for t in tasks)
    steps = math.ceil(most / smallest)
    parts = [
        weights_part(algorithm, weights + _state_bytes(algorithm)),
        Part(
            "data",
            f"benchmark.samples_per_task={benchmark.samples_per_task}",
            2 * sample * (most + tested),
        ),
        Part(
            "plan of an epoch",
            f"benchmark.batch_size={benchmark.batch_size}",
            2 * INDEX_BYTES * steps * per_step,
        ),
        Part(
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
        parts.append(Part("replay memory", f"algo.{key}={getattr(mechanism, key)}", size))
    return parts


def weights_part(algorithm: BaseAlgorithm, num_bytes: int) -> Part:
    """Return the share of network and states of `num_bytes`."""
    return Part("network and states", algorithm.backbone.sized_by, 2 * num_bytes)


def refuse_what_cannot_fit(parts: Iterable[Part], available: int | None = None) -> None:
    """Raise ConfigError if the parts are larger together than the memory that is available.

    Args:
        parts: what is needed.
        available: bytes; None = what there is now, and no check where that cannot be told.
    """
    parts = list(parts)
    available = available_bytes() if available is None else available
    if available is None or fits(parts, available):
        return
    ordered = sorted(parts, key=lambda part: -part.num_bytes)
    needed = sum(part.num_bytes for part in ordered)
    large = [part for part in ordered if part.num_bytes >= needed / 100]
    listed = ", ".join(f"{p.name} {_gib(p.num_bytes)} ({p.key})" for p in large)
    raise ConfigError(
        f"{ordered[0].key}: must need less memory: the run needs about {_gib(needed)}, "
        f"{_gib(available)} are available; {listed}"
    )


def fits(parts: Iterable[Part], available: int | None = None) -> bool:
    """Return whether the parts fit together into what is available, as `refuse_what_cannot_fit`."""
    available = available_bytes() if available is None else available
    return available is None or sum(part.num_bytes for part in parts) <= available


def available_bytes() -> int | None:
    """Return the memory that this process can still use: the machine's, or its cgroups' limit."""
    found = [_machine_bytes(), *_cgroup_bytes()]
    return min((b for b in found if b is not None), default=None)


def total_bytes() -> int | None:
    """Return the memory that this process could use at most: the machine's, or a cgroup's limit."""
    found = [_cgroup_limit(folder, names[0]) for folder, names in _cgroups()]
    with suppress(OSError, ValueError, KeyError):
        found.append(_meminfo()["MemTotal"])
    return min((b for b in found if b is not None), default=None)


def _meminfo() -> dict[str, int]:
    lines = (line.split(":") for line in MEMINFO.read_text().splitlines())
    return {name: int(rest.split()[0]) * 1024 for name, rest in lines}


def _machine_bytes() -> int | None:
    with suppress(OSError, ValueError, KeyError):
        values = _meminfo()
        return values["MemAvailable"] + values["SwapFree"]
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _cgroup_bytes() -> list[int]:
    """Return what is left in each cgroup with a limit that this process is in."""
    return [left for folder, names in _cgroups() for left in _left_in(folder, *names)]


def _cgroup_limit(folder: Path, name: str) -> int | None:
    with suppress(OSError, ValueError):  # "max" is no number, and no limit
        return int((folder / name).read_text())
    return None


def _cgroups() -> list[tuple[Path, tuple[str, str, str]]]:
    """Return the folder of each cgroup that this process is in, and the names of its files."""
    found: list[tuple[Path, tuple[str, str, str]]] = []
    with suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
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
        room = int((folder / limit).read_text()) - int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return [max(0, room + int(stat.get(reclaimable, 0)))]
    return []


def _state_bytes(algorithm: Any) -> int:
    carried = getattr(algorithm, "carry", algorithm)
    groups = [getattr(carried, name, None) for name in ("stats", "opt_state", "state")]
    return array_bytes([*groups, algorithm.kept])


def array_bytes(value: Any) -> int:
    """Return the bytes of all arrays in nested containers."""
    if isinstance(value, Mapping):
        return array_bytes(list(value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(array_bytes, value))
    return int(getattr(value, "nbytes", 0))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"

"""VmapGroup: calls of several runs that differ only in values, as one vmapped program."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from seqrun.training.engine.cache import compiling
from seqrun.training.engine.vmap import BaseVmapGroup, Call, Failure, Participant

SHARED_BYTES = 1 << 16
"""Size in bytes from which equal arrays of several runs share memory on the device."""
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""Part of the message of jax's error."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")

Group = list[tuple[Participant, Call, list[Any]]]
"""Participants that call the same function with arrays of the same shapes, and these arrays."""


class VmapGroup(BaseVmapGroup):
    """Answer the calls of several runs with as few programs as possible.

    Calls with the same name, structure, shapes and dtypes are answered by one program. It stacks
    the arguments that differ between runs, maps the function over the stack (`jax.vmap`) and
    unstacks the results. Arguments that are the same for all runs (one array on the device, or
    equal arrays on the host) are passed once. If runs have ended, the group is padded to the next
    power of two with copies of its first call, so that few sizes are compiled. A group of one uses
    the ordinary program of a single run.

    If the device has too little memory for a program, for example for the activations of many
    convolutional networks, this call and its later calls are split into smaller groups.

    The runs must have the same structure, because a program is traced from the first participant's
    call. The last participant's call is traced too. If the two differ, each run uses its own
    program.
    """

    def __init__(self) -> None:
        self._programs: dict[Hashable, Callable] = {}
        self._same_function: dict[Hashable, bool] = {}
        self._fingerprints: dict[tuple[Hashable, Participant], bytes] = {}
        self._differed: dict[Hashable, set[int]] = {}
        self._max_group: dict[Hashable, int] = {}
        self._placed: WeakValueDictionary[Any, Array] = WeakValueDictionary()
        self._num_runs = 1
        self._compile_seconds = 0.0

    def place(self, array: np.ndarray, device: Any) -> Array:
        """Return the array on the device, shared with other runs that placed an equal array."""
        if array.nbytes < SHARED_BYTES or not isinstance(array, np.ndarray):
            return jax.device_put(array, device)
        content = hashlib.sha256(np.ascontiguousarray(array).data).digest()
        key = (array.shape, array.dtype.str, content)
        placed = self._placed.get(key)
        if placed is None or placed.is_deleted():
            placed = self._placed[key] = jax.device_put(array, device)
        return placed

    def answer(self, calls: Mapping[Participant, Call]) -> Mapping[Participant, Any]:
        """Run all calls, group by group."""
        self._num_runs = max(self._num_runs, len(calls))
        self._compile_seconds = 0.0
        groups: dict[Hashable, Group] = {}
        for participant, call in calls.items():
            leaves, tree = jax.tree.flatten(call.args)
            shapes = tuple((a.shape, a.dtype) for a in leaves)
            groups.setdefault((call.name, tree, shapes), []).append((participant, call, leaves))
        answers: dict[Participant, Any] = {}
        for key, group in groups.items():
            try:
                results = self._run_split(key, group)
            except Exception as error:
                results = [Failure(error)] * len(group)
            answers |= {call[0]: result for call, result in zip(group, results, strict=True)}
        for call in calls.values():
            call.timing["compile_seconds"] += self._compile_seconds
        return answers

    def _run_split(self, key: Hashable, group: Group) -> list[Any]:
        """Run the calls of a group, split so that each part fits into the device's memory."""
        size = self._max_group.get(key, len(group))
        if len(group) <= size:
            try:
                return self._run(key, group)
            except jax.errors.JaxRuntimeError as error:
                if len(group) == 1 or OUT_OF_MEMORY not in str(error):
                    raise
            # The next smaller power of two: other sizes would be padded to one.
            size = self._max_group[key] = 1 << ((len(group) - 1).bit_length() - 1)
            sys.stderr.write(
                f"{group[0][1].name}: too large for the device's memory with {len(group)} runs in "
                f"one program; {size} at a time\n"
            )
        cuts = range(0, len(group), size)
        return [r for cut in cuts for r in self._run_split(key, group[cut : cut + size])]

    def _run(self, key: Hashable, group: Group) -> list[Any]:
        """Return the results of a group's calls."""
        head, first, _ = group[0]
        if len(group) == 1 or not self._have_same_function(key, group):
            return [self._single(key, participant, call) for participant, call, _ in group]
        columns = list(zip(*(leaves for _, _, leaves in group), strict=True))
        shared = self._shared(key, columns)
        if all(shared):
            return [self._single(key, head, first)] * len(group)
        size = self._size(len(group))
        common = [column[0] for column, same in zip(columns, shared, strict=True) if same]
        own = [
            [*column, *[column[0]] * (size - len(group))]
            for column, same in zip(columns, shared, strict=True)
            if not same
        ]
        tree = jax.tree.structure(first.args)
        results = self._compiled(
            (key, shared, size), lambda: _mapped(first.function, tree, shared, size), (common, own)
        )
        return results[: len(group)]

    def _single(self, key: Hashable, participant: Participant, call: Call) -> Any:
        """Run one call, with the program of the first participant that has the same function."""
        same = self._fingerprint(key, participant, call)
        return self._compiled((key, "alone", same), lambda: call.function, call.args)

    def _fingerprint(self, key: Hashable, participant: Participant, call: Call) -> bytes:
        """Return the fingerprint of a participant's function, computed at its first call."""
        if (key, participant) not in self._fingerprints:
            started = time.perf_counter()
            self._fingerprints[key, participant] = _fingerprint(call.function, call.args)
            self._compile_seconds += time.perf_counter() - started
        return self._fingerprints[key, participant]

    def _compiled(self, key: Hashable, make: Callable[[], Callable], args: tuple) -> Any:
        """Call a program, which is compiled at its first call."""
        if key not in self._programs:
            started = time.perf_counter()
            with compiling("jax", "the programs of several runs", str(key)):
                self._programs[key] = jax.jit(make()).lower(*args).compile()
            self._compile_seconds += time.perf_counter() - started
            # Wait, so that a lack of memory is raised here and not where results are read.
            return jax.block_until_ready(self._programs[key](*args))
        return self._programs[key](*args)

    def _size(self, participants: int) -> int:
        """Return the size of the program for `participants` calls: padded to a power of two."""
        return min(1 << (participants - 1).bit_length(), self._num_runs)

    def _shared(self, key: Hashable, columns: Sequence[tuple[Any, ...]]) -> tuple[bool, ...]:
        """Return which arguments are the same for all participants.

        An array on the host that differed once counts as different from then on. Plans of different
        seeds are sometimes equal by chance, and every pattern would be compiled separately.
        """
        differed = self._differed.setdefault(key, set())
        shared = [
            place not in differed and _are_same(column) for place, column in enumerate(columns)
        ]
        for place, column in enumerate(columns):
            if not shared[place] and isinstance(column[0], np.ndarray) and column[0].ndim:
                differed.add(place)
        return tuple(shared)

    def _have_same_function(self, key: Hashable, group: Group) -> bool:
        """Return whether the first and the last participant's functions are the same."""
        if key not in self._same_function:
            ends = group[0], group[-1]
            first, last = (self._fingerprint(key, who, call) for who, call, _ in ends)
            self._same_function[key] = first == last
            if first != last:
                name = group[0][1].name
                sys.stderr.write(
                    f"{name}: differs from run to run in more than values; each runs its own "
                    "program\n"
                )
        return self._same_function[key]


def _are_same(column: Sequence[Any]) -> bool:
    """Return whether all are the same array, or arrays on the host with the same bits."""
    first = column[0]
    if all(array is first for array in column):
        return True
    if not all(isinstance(array, (np.ndarray, np.generic)) for array in column):
        return False
    content = first.tobytes()
    return all(array.tobytes() == content for array in column[1:])


def _mapped(function: Callable, tree: Any, shared: tuple[bool, ...], size: int) -> Callable:
    """Return a function that calls `function` for `size` runs.

    Args:
        function: of one run's arguments.
        tree: structure of these arguments.
        shared: for each leaf of the structure, whether it is the same for all runs.
        size: number of runs.

    Returns:
        A function of the shared leaves and of one column per other leaf, with one entry per run.
    """

    def run(common: list[Array], columns: list[list[Array]]) -> list[Any]:
        def one(own: list[Array]) -> Any:
            shared_leaves, own_leaves = iter(common), iter(own)
            leaves = [next(shared_leaves if same else own_leaves) for same in shared]
            return function(*jax.tree.unflatten(tree, leaves))

        results = jax.vmap(one)([jnp.stack(column) for column in columns])
        return [jax.tree.map(lambda a, k=k: a[k], results) for k in range(size)]

    return run


def _fingerprint(function: Callable, args: tuple) -> bytes:
    """Return a digest of a function's jaxpr and its constants."""
    traced = jax.make_jaxpr(function)(*args)
    constants: list[bytes] = []
    _collect_constants(traced, constants)
    parts = [ADDRESS.sub("", str(traced)).encode(), *constants]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _collect_constants(traced: Any, constants: list[bytes]) -> None:
    """Append the constants of a jaxpr and of the jaxprs in it."""
    for constant in getattr(traced, "consts", ()):
        is_key = jax.dtypes.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key)
        numbers = jax.random.key_data(constant) if is_key else constant
        constants.append(np.asarray(numbers).tobytes())
    for equation in getattr(getattr(traced, "jaxpr", traced), "eqns", ()):
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    _collect_constants(inner, constants)

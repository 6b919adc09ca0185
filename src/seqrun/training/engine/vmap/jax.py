"""Ensemble: calls of several runs that differ in values alone, as one vmapped program."""

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

from seqrun.training.engine.vmap import BaseEnsemble, Call, Failure, Participant

SHARED_BYTES = 1 << 16
"""Size from which data on the device are looked for among those that are there already."""
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""In the message of jax's error."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")

Group = list[tuple[Participant, Call, list[Any]]]
"""Members that ask for the same function on arrays of the same shapes, with their arrays."""


class Ensemble(BaseEnsemble):
    """Answer the calls of several runs by as few programs as can be.

    Calls of one name, structure, shapes and dtypes are one program: it stacks what differs from run
    to run, maps the function over the stack and takes the results apart. What is the same for all
    (the same array on the device, or equal ones on the host) goes in once. A group that has lost
    participants is filled up, with copies of its first, to the next power of two: few sizes are
    compiled; a group of one is the ordinary program of a single run.

    A program that the device has no memory for, as for the activations of many convolutional
    networks, is run in smaller parts, and so are its later calls: what runs carry stays as it is.

    The runs must have the same structure: a program is traced from the first participant's call.
    The last one's is traced too and compared, and where it differs each runs its own.
    """

    def __init__(self) -> None:
        self._programs: dict[Hashable, Callable] = {}
        self._alike: dict[Hashable, bool] = {}
        self._fingerprints: dict[tuple[Hashable, Participant], bytes] = {}
        self._differed: dict[Hashable, set[int]] = {}
        self._fitting: dict[Hashable, int] = {}
        self._placed: WeakValueDictionary[Any, Array] = WeakValueDictionary()
        self._most = 1
        self._compile_seconds = 0.0

    def place(self, array: np.ndarray, device: Any) -> Array:
        """Return the array on the device: the one that is there if another run has an equal one."""
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
        self._most = max(self._most, len(calls))
        self._compile_seconds = 0.0
        groups: dict[Hashable, Group] = {}
        for participant, call in calls.items():
            leaves, tree = jax.tree.flatten(call.args)
            shapes = tuple((a.shape, a.dtype) for a in leaves)
            groups.setdefault((call.name, tree, shapes), []).append((participant, call, leaves))
        answers: dict[Participant, Any] = {}
        for key, group in groups.items():
            try:
                results = self._run_fitting(key, group)
            except Exception as error:
                results = [Failure(error)] * len(group)
            answers |= {call[0]: found for call, found in zip(group, results, strict=True)}
        for call in calls.values():
            call.timing["compile_seconds"] += self._compile_seconds
        return answers

    def _run_fitting(self, key: Hashable, group: Group) -> list[Any]:
        """Run the calls of a group, so many at a time as the device's memory was found to take."""
        size = self._fitting.get(key, len(group))
        if len(group) <= size:
            try:
                return self._run(key, group)
            except jax.errors.JaxRuntimeError as error:
                if len(group) == 1 or OUT_OF_MEMORY not in str(error):
                    raise
            # A power of two, for a program of another size would be filled up to one.
            size = self._fitting[key] = 1 << ((len(group) - 1).bit_length() - 1)
            sys.stderr.write(
                f"{group[0][1].name}: too large for the device's memory with {len(group)} runs in "
                f"one program; {size} at a time\n"
            )
        cuts = range(0, len(group), size)
        return [r for cut in cuts for r in self._run_fitting(key, group[cut : cut + size])]

    def _run(self, key: Hashable, group: Group) -> list[Any]:
        """Run the calls of a group; return their results."""
        head, first, _ = group[0]
        if len(group) == 1 or not self._are_alike(key, group):
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
        """Run a call alone, by the program of the first participant whose function is the same."""
        same = self._fingerprint(key, participant, call)
        return self._compiled((key, "alone", same), lambda: call.function, call.args)

    def _fingerprint(self, key: Hashable, participant: Participant, call: Call) -> bytes:
        """Return what tells a participant's function from others, found at its first call."""
        if (key, participant) not in self._fingerprints:
            started = time.perf_counter()
            self._fingerprints[key, participant] = _fingerprint(call.function, call.args)
            self._compile_seconds += time.perf_counter() - started
        return self._fingerprints[key, participant]

    def _compiled(self, key: Hashable, make: Callable[[], Callable], args: tuple) -> Any:
        """Call a program, compiled at its first use."""
        if key not in self._programs:
            started = time.perf_counter()
            self._programs[key] = jax.jit(make()).lower(*args).compile()
            self._compile_seconds += time.perf_counter() - started
            # What it lacks memory for is to be found out here, not where results are read.
            return jax.block_until_ready(self._programs[key](*args))
        return self._programs[key](*args)

    def _size(self, participants: int) -> int:
        """Return the size of program that so many participants use."""
        return min(1 << (participants - 1).bit_length(), self._most)

    def _shared(self, key: Hashable, columns: Sequence[tuple[Any, ...]]) -> tuple[bool, ...]:
        """Return which arguments are the same for all participants.

        A planned array that differed once is taken to differ from then on: plans of different
        seeds agree now and then, and each pattern is a program of its own.
        """
        differed = self._differed.setdefault(key, set())
        shared = [
            place not in differed and _are_same(column) for place, column in enumerate(columns)
        ]
        for place, column in enumerate(columns):
            if not shared[place] and isinstance(column[0], np.ndarray) and column[0].ndim:
                differed.add(place)
        return tuple(shared)

    def _are_alike(self, key: Hashable, group: Group) -> bool:
        """Return whether the first and the last participant's functions are one program."""
        if key not in self._alike:
            ends = group[0], group[-1]
            first, last = (self._fingerprint(key, who, call) for who, call, _ in ends)
            self._alike[key] = first == last
            if first != last:
                name = group[0][1].name
                sys.stderr.write(
                    f"{name}: differs from run to run in more than values; each runs its own "
                    "program\n"
                )
        return self._alike[key]


def _are_same(column: Sequence[Any]) -> bool:
    """Return whether all are the same array, or arrays of the host with the same bits."""
    first = column[0]
    if all(array is first for array in column):
        return True
    if not all(isinstance(array, (np.ndarray, np.generic)) for array in column):
        return False
    content = first.tobytes()
    return all(array.tobytes() == content for array in column[1:])


def _mapped(function: Callable, tree: Any, shared: tuple[bool, ...], size: int) -> Callable:
    """Return `function` of `size` runs: of what they share, and of columns with one of each."""

    def run(common: list[Array], columns: list[list[Array]]) -> list[Any]:
        def one(own: list[Array]) -> Any:
            from_common, from_own = iter(common), iter(own)
            leaves = [next(from_common if same else from_own) for same in shared]
            return function(*jax.tree.unflatten(tree, leaves))

        results = jax.vmap(one)([jnp.stack(column) for column in columns])
        return [jax.tree.map(lambda a, k=k: a[k], results) for k in range(size)]

    return run


def _fingerprint(function: Callable, args: tuple) -> bytes:
    """Return a digest of what a function computes: its program as text, and the constants in it."""
    traced = jax.make_jaxpr(function)(*args)
    constants: list[bytes] = []
    _collect(traced, constants)
    parts = [ADDRESS.sub("", str(traced)).encode(), *constants]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _collect(traced: Any, constants: list[bytes]) -> None:
    """Add the constants of a program and of those within it."""
    for constant in getattr(traced, "consts", ()):
        is_key = jax.dtypes.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key)
        numbers = jax.random.key_data(constant) if is_key else constant
        constants.append(np.asarray(numbers).tobytes())
    for equation in getattr(getattr(traced, "jaxpr", traced), "eqns", ()):
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    _collect(inner, constants)

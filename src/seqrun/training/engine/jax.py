"""JaxEngine: runs the steps of a chunk in one compiled program."""

from __future__ import annotations

import copy
import gc
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.extend.backend import clear_backends

from seqrun.backbones.jax import normalised_inputs
from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError
from seqrun.formulas.augmentation.jax import augmented
from seqrun.formulas.parameters.jax import canonical
from seqrun.formulas.per_sample.jax import CHUNK, UNROLLED
from seqrun.plan import Chunk
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.engine.arrays import flatten_state, unflatten_state
from seqrun.training.engine.base import Engine
from seqrun.training.engine.cache import compilation_cache, compiling
from seqrun.training.engine.threads import default_num_threads
from seqrun.training.engine.vmap import Call, Participant
from seqrun.training.engine.vmap.jax import VmapGroup
from seqrun.training.limits import work_per_batch
from seqrun.training.options import matmul_precision
from seqrun.training.schedules import LR_FACTOR
from seqrun.training.step import Batch, Step

jax.tree_util.register_dataclass(Step, [f.name for f in fields(Step)], [])


JAX_NAMES = {"float32": "float32", "tf32": "tensorfloat32"}
"""`training.matmul_precision` -> jax_default_matmul_precision, which is tf32 unless it is set."""


class Carry(NamedTuple):
    """The values that one step passes to the next."""

    params: dict[str, Array]
    stats: dict[str, Array]
    opt_state: Any
    state: Any


class Fixed(NamedTuple):
    """The values that all steps of a chunk read."""

    dataset: Batch
    mask: Array | None
    hparams: dict[str, Any]
    noise_key: Array


class JaxEngine(Engine):
    """Run an algorithm's steps on JAX.

    Only structure is compiled into a program. Parameters, state, memory and scalars are arguments.

    Args:
        algorithm: the algorithm to run.

    Attributes:
        module: the flax module.
        carry: parameters, BatchNorm statistics, optimizer state and algorithm state.
        device: the device of all arrays.
        dataset: the replay dataset of the task, on the device.
        mask: (T, C) bool, the classes in the softmax of each task; None = all.
        per_sample_rows: largest number of samples for per-sample gradients in one call.
    """

    def __init__(self, algorithm: BaseAlgorithm) -> None:
        super().__init__()
        self.algorithm = algorithm
        self.participant: Participant | None = None
        self.module: nn.Module
        self.device: Any = None
        self.dataset: Batch
        self.mask: Array | None = None
        self._carry: Carry
        self._is_shared = True

    @classmethod
    def find_device(cls, device: str) -> str:
        # `default_backend` initializes jax's devices, which fixes its number of threads: call it
        # only if there is a CUDA plugin.
        plugins = any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
        available = device != "cpu" and plugins and jax.default_backend() == "gpu"
        if device == "cuda" and not available:
            raise ConfigError("device='cuda': jax finds no GPU here; must be auto or cpu")
        return "cuda" if available else "cpu"

    @classmethod
    def new_vmap_group(cls) -> VmapGroup:
        return VmapGroup()

    @property
    def device_bytes(self) -> int | None:
        if self.device_kind == "cpu":
            return None
        return (self.device.memory_stats() or {}).get("bytes_limit")

    def start(self, num_threads: int | None = None) -> None:
        algorithm, benchmark = self.algorithm, self.algorithm.benchmark
        self.module = algorithm.build_module()
        sample = jax.ShapeDtypeStruct((2, *benchmark.input_shape), jnp.float32)
        shapes = jax.eval_shape(lambda x: self.module.init(jax.random.key(0), x), sample)
        self._param_shapes = canonical(shapes["params"])
        self._stat_shapes = canonical(shapes.get("batch_stats", {}))
        rule = algorithm.num_threads or default_num_threads(work_per_batch(algorithm))
        threads = _threads_of_process(num_threads or rule, began_with=num_threads)
        self.device_kind = self.find_device(algorithm.device)
        precision = matmul_precision(algorithm.training, self.device_kind)
        if self.device_kind == "cuda":  # on a CPU it changes nothing but the programs' names
            jax.config.update("jax_default_matmul_precision", JAX_NAMES[precision])
        jax.config.update("jax_compilation_cache_dir", compilation_cache("jax"))  # None = no cache
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        self.device = jax.devices("gpu" if self.device_kind == "cuda" else "cpu")[0]
        self.execution |= {"num_threads": threads, "compiled": True}
        self.execution["matmul_precision"] = precision
        convolves = any(kernel.ndim == 4 for kernel in self._param_shapes.values())
        rows = UNROLLED if self.device_kind == "cpu" else CHUNK
        self.per_sample_rows = rows if convolves else benchmark.eval_batch_size
        # On a CPU, XLA's convolutions were measured to be 8 to 10 times slower inside a loop.
        self._one_step_per_call = self.device_kind == "cpu" and convolves
        if self._one_step_per_call:
            self.execution["steps_per_call"] = 1
        self._programs: dict[Any, Callable] = {}
        self._compiled_new_step = jax.jit(self._new_step)
        self._test_data: dict[tuple[str, int], list[tuple[Array, Array]]] = {}
        mean, std = benchmark.transform.mean, benchmark.transform.std
        self._mean = None if mean is None else np.asarray(mean, np.float32)
        self._std = None if std is None else np.asarray(std, np.float32)

    def stop(self) -> None:
        pass  # nothing to undo

    # ---- the network

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(s.shape) for name, s in self._param_shapes.items()}

    def carried_bytes(self, *, states: bool) -> int:
        algorithm, engine = copy.copy(self.algorithm), copy.copy(self)
        algorithm.engine, engine.algorithm = engine, algorithm
        engine.module, engine.device = algorithm.build_module(), None

        def make() -> Any:
            variables = engine.module.init(jax.random.key(0), jnp.zeros((2, *images)))
            params = canonical(variables["params"])
            stats = canonical(variables.get("batch_stats", {}))
            if not states:
                return params, stats
            engine._param_shapes = params
            engine.carry = Carry(params, stats, algorithm.optimizer.init(params), None)
            engine.carry = engine.carry._replace(state=algorithm.initial_state())
            return engine.carry, algorithm.initial_persistent_state()

        images = algorithm.benchmark.input_shape
        shapes = jax.tree.leaves(jax.eval_shape(make))
        return sum(math.prod(s.shape) * s.dtype.itemsize for s in shapes)

    def state_arrays(self) -> Sequence[Any]:
        return self._carry[1:] if hasattr(self, "_carry") else ()

    def weights_are_finite(self) -> bool:
        return all(np.isfinite(v).all() for v in (self.params | self.stats).values())

    def built_weights(self) -> dict[str, np.ndarray]:
        """Return all parameters and statistics, drawn from the stream "init"."""
        key = jax.random.key(self.algorithm.random.key("init") & 0xFFFFFFFF)
        sample = jnp.zeros((2, *self.algorithm.benchmark.input_shape))
        built = jax.jit(self.module.init)(key, sample)
        named = canonical(built["params"]) | canonical(built.get("batch_stats", {}))
        return {name: np.array(value) for name, value in named.items()}

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        params = {name: self.to_device(weights[name]) for name in self._param_shapes}
        stats = {
            name: self.to_device(
                weights.get(name, np.full(s.shape, float(name.endswith("var")), np.float32))
            )
            for name, s in self._stat_shapes.items()
        }
        self.carry = Carry(params, stats, self.algorithm.optimizer.init(params), None)
        self.carry = self.carry._replace(state=self.algorithm.initial_state())

    def snapshot(self) -> tuple[dict[str, Array], dict[str, Array]]:
        return self.params, self.stats

    def reset_optimizer(self) -> None:
        fresh = self.algorithm.optimizer.init(self.carry.params)
        self.carry = self.carry._replace(opt_state=fresh)

    def to_device(self, array: np.ndarray) -> Array:
        if self.participant is not None:
            return self.participant.group.place(array, self.device)
        return jax.device_put(array, self.device)

    # ---- values carried from step to step

    @property
    def carry(self) -> Carry:
        """The values after the last step. Training does not overwrite arrays that were read."""
        self._is_shared = True
        return self._carry

    @carry.setter
    def carry(self, carry: Carry) -> None:
        self._carry, self._is_shared = carry, True

    @property
    def params(self) -> dict[str, Array]:
        return self.carry.params

    @property
    def stats(self) -> dict[str, Array]:
        return self.carry.stats

    @property
    def opt_state(self) -> Any:
        """The optimizer's NamedTuple."""
        return self.carry.opt_state

    @property
    def state(self) -> Any:
        return self.carry.state

    @state.setter
    def state(self, state: Any) -> None:
        self.carry = self.carry._replace(state=state)

    def _run_program(self, program: Callable, *args: Any) -> tuple[Array, Array]:
        """Run a program, which overwrites the carry; return the losses and correct counts.

        If other code may hold the carry's arrays, such as an anchor or a snapshot, they are copied
        first.
        """
        if self._is_shared and self.participant is None:
            self._carry = _copied(self._carry)
        self._carry, losses, correct = program(self._carry, *args)
        self._is_shared = False
        return losses, correct

    # ---- training

    def load_dataset(self, dataset: Dataset, mask: np.ndarray | None) -> None:
        self.dataset = Batch(*(self.to_device(a) for a in dataset))
        self.mask = None if mask is None else self.to_device(mask)

    def inputs(self, x: Array) -> Array:
        """Return the network inputs of stored uint8 images."""
        return normalised_inputs(x, self._mean, self._std)

    def run_chunk(self, chunk: Chunk) -> None:
        """Run the chunk in one compiled program, or step by step if callbacks have step hooks."""
        algorithm = self.algorithm
        hparams: dict[str, Any] = {n: np.float32(v) for n, v in algorithm.hparams().items()}
        noise = jax.random.key(algorithm.random.key("noise") & 0xFFFFFFFF)
        fixed = Fixed(self.dataset, self.mask, hparams, noise)
        single, losses, correct = self._one_step_per_call, [], []
        name, function = ("step", self._step_program) if single else ("chunk", self._chunk_program)
        results: tuple[Any, Any]
        for segment in self.events.segments(chunk):
            if self.events.has_host_step_hooks:
                results = self._run_with_host_hooks(fixed, segment)
            else:
                args = self._arguments(fixed, segment)
                program = self.compiled(name, function, (self._carry, *args), donated=(0,))
                call = self._call_for_each_step if single else self._call_once
                results = call(program, args, segment.steps)
            losses.append(results[0])
            correct.append(results[1])
            self.events.end_segment(segment.first_step + segment.steps)
        chunk.losses, chunk.correct = np.concatenate(losses), np.concatenate(correct)

    def _arguments(self, fixed: Fixed, chunk: Chunk) -> tuple[Any, ...]:
        """Return a program's arguments after the carry.

        The last one is the index of the step for a step's program, else the number of steps.
        """
        arrays, first = self._padded(chunk), np.int32(chunk.first_step)
        if self._one_step_per_call:
            return fixed, {n: self.to_device(a) for n, a in arrays.items()}, first, np.int32(0)
        return fixed, arrays, first, np.int32(chunk.steps)

    def _call_once(self, program: Callable, args: tuple, steps: int) -> tuple[Array, Array]:
        losses, correct = self._run_program(program, *args)
        return losses[:steps], correct[:steps]

    def _call_for_each_step(
        self, program: Callable, args: tuple, steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Call the program of one step for every step, asynchronously."""
        results = [self._run_program(program, *args[:-1], np.int32(s)) for s in range(steps)]
        losses, correct = zip(*results, strict=True)
        return np.stack(losses), np.stack(correct)

    def _padded(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Return the chunk's arrays, padded to `chunk_steps` steps.

        The number of steps to run is an argument, so chunks of any length share one program.
        """
        is_full = chunk.batch_size == self.algorithm.benchmark.batch_size_of(chunk.task)
        size = max(self.chunk_steps if is_full else 1, chunk.steps)
        return {
            n: np.concatenate([a, np.zeros((size - chunk.steps, *a.shape[1:]), a.dtype)])
            for n, a in chunk.arrays.items()
        }

    def _step_program(
        self, carry: Carry, fixed: Fixed, arrays: dict[str, Array], first: Array, s: Array
    ) -> tuple[Carry, Array, Array]:
        """Run step `s` of the plan arrays; return the new carry, the loss and the correct count."""
        step = self._new_step(carry, fixed, _row(arrays, s), first + s)
        self.events.run_step(step)
        return _carry_of(step), step.loss, _num_correct(step)

    def _chunk_program(
        self, carry: Carry, fixed: Fixed, arrays: dict[str, Array], first: Array, steps: Array
    ) -> tuple[Carry, Array, Array]:
        """Run the first `steps` steps of the plan arrays in a loop."""
        size = arrays["index"].shape[0]

        def body(s: Array, carried: tuple[Carry, Array, Array]) -> tuple[Carry, Array, Array]:
            carry, losses, correct = carried
            step = self._new_step(carry, fixed, _row(arrays, s), first + s)
            self.events.run_step(step)
            return (
                _carry_of(step),
                losses.at[s].set(step.loss),
                correct.at[s].set(_num_correct(step)),
            )

        start = (carry, jnp.zeros(size), jnp.zeros(size, jnp.int32))
        return jax.lax.fori_loop(0, steps, body, start)

    def _run_with_host_hooks(self, fixed: Fixed, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """Run the steps one by one: hooks run on the host, the parts of a step are compiled."""
        losses, correct = [], []
        for s in range(chunk.steps):
            row = {n: jnp.asarray(a[s]) for n, a in chunk.arrays.items()}
            step = self._compiled_new_step(self.carry, fixed, row, jnp.int32(chunk.first_step + s))
            self.events.run_step(step)
            self.carry = _carry_of(step)
            losses.append(step.loss)
            correct.append(_num_correct(step))
        return np.stack(losses), np.stack(correct)

    def _new_step(self, carry: Carry, fixed: Fixed, row: dict[str, Array], index: Array) -> Step:
        batches = {}
        for name in self.algorithm.batch_names:
            x, y, t = (a[row[name]] for a in fixed.dataset)
            if f"augment/{name}" in row:
                crop_padding = self.algorithm.benchmark.crop_padding
                x = augmented(fixed.dataset.x, row[name], row[f"augment/{name}"], crop_padding)
            batches[name] = Batch(self.inputs(x), y, t)
        key, hparams = jax.random.fold_in(fixed.noise_key, index), fixed.hparams
        if LR_FACTOR in row:
            hparams = hparams | {"lr": hparams["lr"] * row[LR_FACTOR]}
        return Step(batches, *carry, hparams, fixed.mask, row, fixed.dataset, key)

    def compiled_part(self, function: Callable[[Step], None]) -> Callable[[Step], None]:
        @jax.jit
        def pure(step: Step) -> Step:
            function(step)
            return step

        def call(step: Step) -> None:
            after = pure(step)
            for f in fields(Step):
                setattr(step, f.name, getattr(after, f.name))

        return call

    def compiled(
        self, name: str, function: Callable, args: tuple, donated: tuple[int, ...] = ()
    ) -> Callable:
        """Return `function` compiled for the shapes of `args`, and record the compile time.

        If the run has a participant, the function returned waits for the calls of the other runs,
        with which it may share a program.

        Args:
            name, function: the function to compile, and its name.
            args: arguments of the first call.
            donated: positions of arguments whose arrays may be overwritten by results. Ignored if
                the run has a participant.
        """
        participant, timing = self.participant, self.algorithm.progress.timing
        if participant is not None:
            return lambda *given: participant.call(Call(name, function, given, timing))
        leaves, tree = jax.tree.flatten(args)
        key = (name, tree, tuple((a.shape, a.dtype) for a in leaves))
        if key not in self._programs:
            started = time.perf_counter()
            jitted = jax.jit(function, donate_argnums=donated)
            with compiling("jax", self._title(name), f"{self.algorithm.name} {key}"):
                self._programs[key] = jitted.lower(*args).compile()
            timing["compile_seconds"] += time.perf_counter() - started
        return self._programs[key]

    def _title(self, name: str) -> str:
        return f"{self.algorithm.name} ({name.replace('_', ' ')})"

    # ---- evaluation, tracing

    def count_correct(
        self, task: int, masks: Sequence[np.ndarray | None], split: str | None = None
    ) -> list[int]:
        algorithm, benchmark = self.algorithm, self.algorithm.benchmark
        key = split or algorithm.measured_on, task
        if key not in self._test_data:
            data = benchmark.task_data(task, key[0])
            size = benchmark.eval_batch_size
            self._test_data[key] = [
                (self.to_device(data.x[i : i + size]), self.to_device(data.y[i : i + size]))
                for i in range(0, len(data.y), size)
            ]
        all_classes = np.ones(benchmark.num_classes, bool)
        allowed = np.stack([all_classes if mask is None else mask for mask in masks])
        counts = np.zeros(len(masks), int)
        weights = *algorithm.evaluation_weights(task), algorithm.evaluation_arrays(task)
        for x, y in self._test_data[key]:
            args = (*weights, x, y, allowed)
            counts += np.asarray(self.compiled("evaluate", self._evaluate_program, args)(*args))
        return counts.tolist()

    def _evaluate_program(
        self, params: dict, stats: dict, arrays: Any, x: Array, y: Array, allowed: Array
    ) -> Array:
        logits = self.algorithm.evaluation_logits(params, stats, arrays, self.inputs(x))
        masked = jnp.where(allowed[:, None], logits, -jnp.inf)
        return (masked.argmax(-1) == y).sum(-1)

    def start_trace(self, folder: Path) -> None:
        jax.profiler.start_trace(folder, create_perfetto_trace=True)

    def stop_trace(self) -> None:
        """Write the trace into plugins/profile/<time>/."""
        jax.block_until_ready(self.carry)
        jax.profiler.stop_trace()

    # ---- state as data

    def export_arrays(self) -> dict[str, np.ndarray]:
        groups = dict(zip(("params", "stats", "optimizer", "state"), self.carry, strict=True))
        groups["kept"] = self.algorithm.persistent
        return {name: np.asarray(v) for name, v in flatten_state(groups).items()}

    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        loaded = {n: self.to_device(a) for n, a in arrays.items() if not n.startswith("memory/")}
        groups = ("params", "stats", "optimizer", "state")
        self.carry = Carry(
            *(unflatten_state(part, g, loaded) for part, g in zip(self.carry, groups, strict=True))
        )
        self.algorithm.persistent = unflatten_state(self.algorithm.persistent, "kept", loaded)


_process_threads: list[int] = []
"""The number of threads of this process's JAX, once a run has initialized it."""


def _threads_of_process(wanted: int, began_with: int | None) -> int:
    """Return the number of threads of this process's JAX, fixed while a run's arrays are alive.

    Args:
        wanted: by a run's options or the fixed rule.
        began_with: as `num_threads` of `JaxEngine.start`.

    Raises:
        ConfigError: a run cannot continue with as many threads as it began with.
    """
    if _process_threads and _process_threads != [wanted]:
        gc.collect()
        if not jax.live_arrays():  # earlier runs are gone: JAX can start anew
            clear_backends()
            _process_threads.clear()
    if not _process_threads:
        os.environ["NPROC"] = str(wanted)  # read when jax initializes its devices
        _process_threads.append(wanted)
    (threads,) = _process_threads
    if began_with is not None and threads != began_with:
        raise ConfigError(
            f"num_threads={threads}: must be {began_with}, with which this run began, because "
            "the number changes the last bits; arrays of an earlier run of this process hold JAX "
            "to its number: delete that run, or continue in a process of its own"
        )
    if threads != wanted:
        sys.stderr.write(
            f"warning: num_threads is {threads} in this run, not {wanted}, which may change its "
            "last bits: arrays of an earlier run of this process hold JAX to its number\n"
        )
    return threads


@jax.jit
def _copied(carry: Carry) -> Carry:
    return jax.tree.map(jnp.copy, carry)


def _carry_of(step: Step) -> Carry:
    return Carry(step.params, step.stats, step.opt_state, step.state)


def _row(arrays: dict[str, Array], s: Array) -> dict[str, Array]:
    """Return row `s` of every plan array."""
    return {n: jax.lax.dynamic_index_in_dim(a, s, keepdims=False) for n, a in arrays.items()}


def _num_correct(step: Step) -> Array:
    """Return the number of samples of the batch that were classified correctly."""
    return (step.logits.argmax(-1) == step.batch.y).sum()

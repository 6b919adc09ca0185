"""TorchEngine: runs the steps of a plan eagerly or compiled."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from seqrun.backbones.torch import normalised_inputs
from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError
from seqrun.formulas.augmentation.torch import augmented
from seqrun.formulas.parameters.torch import canonical_names, from_canonical, to_canonical
from seqrun.plan import Chunk
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.engine.arrays import flatten_state, unflatten_state
from seqrun.training.engine.base import Engine
from seqrun.training.engine.compile import to_compile
from seqrun.training.engine.compile.torch import (
    CompiledNetwork,
    CompiledSteps,
    Program,
    can_compile_steps,
    capture_graph,
    has_compiler,
    keep_programs,
)
from seqrun.training.engine.threads import default_num_threads
from seqrun.training.limits import array_bytes, check_size, work_per_batch
from seqrun.training.options import matmul_precision
from seqrun.training.schedules import LR_FACTOR
from seqrun.training.step import Batch, Step

LAYOUT = torch.channels_last
"""Memory layout of convolution kernels and images."""


class TorchEngine(Engine):
    """Run an algorithm's steps on PyTorch.

    Args:
        algorithm: the algorithm to run.

    Attributes:
        module: the network, in train mode except inside `evaluating`.
        network: what a training step calls: the module, or its compiled version.
        opt_state: the optimizer's NamedTuple.
        device: the device of all arrays.
        dataset: the replay dataset of the task, on the device.
        mask: (T, C) bool, the classes in the softmax of each task; None = all.
    """

    gathered_steps: ClassVar[int] = 64
    """Steps whose inputs are gathered at once: few enough to stay in a processor's cache."""

    def __init__(self, algorithm: BaseAlgorithm) -> None:
        super().__init__()
        self.algorithm = algorithm
        self.device = torch.device("cpu")
        self.module: nn.Module
        self.network: Callable[[Tensor], Tensor]
        self._params: dict[str, Tensor] = {}
        self._stats: dict[str, Tensor] = {}
        self._state: Any = None
        self.opt_state: Any = None
        self.dataset: Batch
        self.mask: Tensor | None = None
        self._module_names: dict[str, str] = {}
        self._threads_before: int | None = None
        self._precision_before: tuple[str, bool] | None = None

    @classmethod
    def find_device(cls, device: str) -> str:
        available = device != "cpu" and torch.cuda.is_available()
        if device == "cuda" and not available:
            raise ConfigError("device='cuda': torch finds no GPU here; must be auto or cpu")
        return "cuda" if available else "cpu"

    def start(self, num_threads: int | None = None) -> None:
        algorithm, benchmark = self.algorithm, self.algorithm.benchmark
        self.device_kind = self.find_device(algorithm.device)
        self.device = torch.device(self.device_kind)
        check_size(algorithm)  # before anything large is allocated
        with torch.random.fork_rng(devices=[]):  # seeds the initializers of weights that are kept
            torch.manual_seed(algorithm.random.key("init"))
            self.module = algorithm.build_module().to(self.device)
            self.module.to(memory_format=LAYOUT)
        self.network = self.module
        params, self._stats = canonical_names(self.module)
        self._params = {**params}
        tensors = dict((*self.module.named_parameters(), *self.module.named_buffers()))
        names = {id(value): name for name, value in tensors.items()}
        self._module_names = {n: names[id(v)] for n, v in (self.params | self.stats).items()}
        self._built = {
            n: np.array(to_canonical(v.detach(), n).cpu().numpy())
            for n, v in (self.params | self.stats).items()
            if algorithm.backbone.keeps(n)
        }
        self._threads_before = torch.get_num_threads()
        rule = algorithm.num_threads or default_num_threads(work_per_batch(algorithm))
        threads = num_threads or rule
        torch.set_num_threads(threads)
        self.execution |= {"num_threads": threads, "compiled": False}
        self._precision_before = _precision()
        precision = matmul_precision(algorithm.training, self.device_kind)
        _set_precision("high" if precision == "tf32" else "highest", precision == "tf32")
        self.execution["matmul_precision"] = precision
        mean, std = benchmark.transform.mean, benchmark.transform.std
        self._mean = None if mean is None else torch.tensor(mean, device=self.device)
        self._std = None if std is None else torch.tensor(std, device=self.device)
        self._test_data: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def stop(self) -> None:
        program: Program | None = self.__dict__.pop("_program", None)
        if program is not None:
            program.close()
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
        if self._precision_before is not None:
            _set_precision(*self._precision_before)

    # ---- the network

    @property
    def params(self) -> dict[str, Tensor]:
        return self._params

    @property
    def stats(self) -> dict[str, Tensor]:
        return self._stats

    @property
    def state(self) -> Any:
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self._state = state

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(to_canonical(p, name).shape) for name, p in self.params.items()}

    def carried_bytes(self, *, states: bool) -> int:
        algorithm, engine = copy.copy(self.algorithm), copy.copy(self)
        algorithm.engine, engine.algorithm = engine, algorithm
        engine.device = torch.device("meta")
        with engine.device:
            engine.module = algorithm.build_module()
            params, engine._stats = canonical_names(engine.module)
            engine._params = {**params}
            algorithm.optimizer.check_params(engine.params)
            carried: list[Any] = [engine.params, engine.stats]
            if states:  # for some of these torch imports modules for a second
                engine.reset_optimizer()
                carried += [engine.opt_state, algorithm.initial_state()]
                carried.append(algorithm.initial_persistent_state())
        return array_bytes(carried)

    def state_arrays(self) -> Sequence[Any]:
        return self.stats, self.opt_state, self.state

    def weights_are_finite(self) -> bool:
        return all(bool(v.isfinite().all()) for v in (self.params | self.stats).values())

    def built_weights(self) -> dict[str, np.ndarray]:
        return self._built

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        for name, parameter in self.params.items():
            parameter.copy_(from_canonical(torch.from_numpy(weights[name]), name))
        for name, statistic in self.stats.items():
            fresh = np.full(statistic.shape, float(name.endswith("var")), np.float32)
            statistic.copy_(torch.from_numpy(weights.get(name, fresh)))
        self.reset_optimizer()
        self.state = self.algorithm.initial_state()
        self.module.train()

    def module_values(
        self, params: Mapping[str, Tensor], stats: Mapping[str, Tensor], prefix: str = ""
    ) -> dict[str, Tensor]:
        """Return parameters and statistics under the module's own names, for `functional_call`."""
        return {f"{prefix}{self._module_names[n]}": v for n, v in {**params, **stats}.items()}

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params = {n: p.detach().clone() for n, p in self.params.items()}
        return params, {n: s.clone() for n, s in self.stats.items()}

    @torch.no_grad()
    def frozen_copy(self, params: Mapping[str, Tensor], stats: Mapping[str, Tensor]) -> Any:
        """Return a copy of the module with these values, in eval mode and without gradients.

        Calling it is faster than `functional_call` of the module.
        """
        module = copy.deepcopy(self.module).eval().requires_grad_(False)
        copied_params, copied_stats = canonical_names(module)
        for name, value in {**params, **stats}.items():
            (copied_params | copied_stats)[name].copy_(value)
        return module

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the module in eval mode inside this block."""
        before = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(before)

    @contextmanager
    def without_side_effects(self, *, restore_statistics: bool = True) -> Iterator[None]:
        """Restore the random generators, and BatchNorm's statistics, after this block."""
        restored = self.stats.values() if restore_statistics else ()
        before = [statistic.clone() for statistic in restored]
        devices = [self.device] if self.device_kind == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=self.algorithm.backbone.is_noisy):
            yield
        for statistic, value in zip(restored, before, strict=True):
            statistic.copy_(value)

    def reset_optimizer(self) -> None:
        self.opt_state = self.algorithm.optimizer.init(self.params)

    def to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    # ---- training

    def load_dataset(self, dataset: Dataset, mask: np.ndarray | None) -> None:
        x, y, t = (self.to_device(a) for a in dataset)
        self.dataset = Batch(x, y.long(), t.long())
        self.mask = None if mask is None else self.to_device(mask)

    def inputs(self, x: Tensor) -> Tensor:
        """Return the network inputs of stored uint8 images."""
        return normalised_inputs(x, self._mean, self._std)

    def run_chunk(self, chunk: Chunk) -> None:
        """Run the chunk's steps; the inputs of `gathered_steps` steps are gathered at once."""
        rows = {n: self.to_device(a) for n, a in chunk.arrays.items()}
        # A segment shorter than a chunk is not worth compiling.
        program = self._program if chunk.segment_steps >= self.chunk_steps else None
        steps = program if isinstance(program, CompiledSteps) else None
        self.network = program if isinstance(program, CompiledNetwork) else self.module
        compile_seconds = program.seconds if program else 0.0
        hparams = self.algorithm.hparams()
        run_steps = steps or self._run_steps
        losses, logits = [], []
        with self._noise(chunk.first_step):
            for segment in self.events.segments(chunk):
                first = segment.first_step - chunk.first_step
                lengths = (steps or self).lengths(segment.steps)
                with flush_denormals(self.execution["num_threads"]):
                    for batches, plan in self._gathered(rows, first, lengths):
                        self.opt_state, self.state, loss, logit = run_steps(
                            batches, plan, self.opt_state, self.state, hparams
                        )
                        losses.append(loss)
                        logits.append(logit)
                self.events.end_segment(segment.first_step + segment.steps)
        if program is not None:
            self._record_program(program, program.seconds - compile_seconds)
        chunk.losses = torch.cat(losses).cpu().numpy()
        labels = self.dataset.y[rows["index"]]
        chunk.correct = (torch.cat(logits).argmax(-1) == labels).sum(1).cpu().numpy()

    def _record_program(self, program: Program, seconds: float) -> None:
        """Record what was compiled and the time that it took in a chunk."""
        self.algorithm.progress.timing["compile_seconds"] += seconds
        self.execution["compiled"] = program.failure is None and program.part
        if program.failure is not None:
            self.execution["not_compiled_because"] = program.failure
        if isinstance(program, CompiledSteps):
            program.end_chunk()
            if program.has_captured is not None:
                self.execution["cuda_graphs"] = program.has_captured

    def lengths(self, steps: int) -> list[int]:
        """Return the number of steps whose inputs are gathered at once, part by part."""
        whole, rest = divmod(steps, self.gathered_steps)
        return [self.gathered_steps] * whole + [rest] * (rest > 0)

    def _gathered(
        self, rows: Mapping[str, Tensor], first: int, lengths: list[int]
    ) -> Iterator[tuple[dict[str, Batch], dict[str, Tensor]]]:
        """Yield the batches and plan rows of consecutive parts of a chunk.

        Args:
            rows: the chunk's plan arrays, on the device.
            first: 0-based step of the chunk at which the first part starts.
            lengths: number of steps of each part, at most `gathered_steps`.
        """
        start = gathered = first
        last = first + sum(lengths)
        for n in lengths:
            if first + n > gathered:
                start, gathered = first, min(first + self.gathered_steps, last)
                batches = self._batches(rows, slice(start, gathered))
            cut = slice(first - start, first - start + n)
            yield (
                {name: Batch(*(a[cut] for a in batch)) for name, batch in batches.items()},
                {name: row[first : first + n] for name, row in rows.items()},
            )
            first += n

    def _batches(self, rows: Mapping[str, Tensor], cut: slice) -> dict[str, Batch]:
        """Return name -> batches of the steps in a slice of the plan."""
        offsets = {n: rows.get(f"augment/{n}") for n in self.algorithm.batch_names}
        return {
            n: self.gather(rows[n][cut], None if off is None else off[cut])
            for n, off in offsets.items()
        }

    def gather(self, index: Tensor, offsets: Tensor | None = None) -> Batch:
        """Return samples of the replay dataset, augmented if `offsets` are given.

        Args:
            index: (steps, B) row indices into the dataset.
            offsets: (steps, B, 3) crops and flips, see `seqrun.plan.augmentation`.

        Returns:
            Inputs (steps, B, H, W, C), labels and tasks (steps, B).
        """
        flat = index.flatten()
        if offsets is None:
            x = self.dataset.x.index_select(0, flat)
        else:
            crop_padding = self.algorithm.benchmark.crop_padding
            x = augmented(self.dataset.x, flat, offsets.flatten(0, 1), crop_padding)
        y, t = (a.index_select(0, flat).view(index.shape) for a in self.dataset[1:])
        return Batch(self.inputs(x.unflatten(0, index.shape)), y, t)

    def _run_steps(
        self,
        batches: dict[str, Batch],
        rows: dict[str, Tensor],
        opt_state: Any,
        state: Any,
        hparams: dict[str, float],
    ) -> tuple[Any, Any, Tensor, Tensor]:
        """Run consecutive steps.

        Args:
            batches: name -> batches of all steps.
            rows: name -> plan array of all steps.
            opt_state, state, hparams: as in Step, for the first step.

        Returns:
            The new optimizer and algorithm state, the losses (steps,) and logits (steps, B, C).
        """
        singles = (map(Batch, *(a.unbind(0) for a in b)) for b in batches.values())
        plan = zip(*(a.unbind(0) for a in rows.values()), strict=True)
        losses, logits = [], []
        for given, row in zip(zip(*singles, strict=True), plan, strict=True):
            arrays = dict(zip(rows, row, strict=True))
            step = Step(
                dict(zip(batches, given, strict=True)),
                self.params,
                self.stats,
                opt_state,
                state,
                _scheduled(hparams, arrays),
                self.mask,
                arrays,
                self.dataset,
            )
            self.events.run_step(step)
            opt_state, state = step.opt_state, step.state
            losses.append(step.loss)
            logits.append(step.logits)
        return opt_state, state, torch.stack(losses), torch.stack(logits)

    def compiled_part(self, function: Callable[[Step], None]) -> Callable[[Step], None]:
        return function  # steps with hooks on the host are not compiled

    @property
    def _part_to_compile(self) -> str | None:
        """The part of the run to compile, "steps", "network" or None; see `to_compile`."""
        convolves = any(p.ndim == 4 for p in self.params.values())
        work = self.total_steps, work_per_batch(self.algorithm)
        choice, kind = self.algorithm.training.compile, self.device_kind
        always = choice == "always"
        part = None if choice == "never" else to_compile(*work, kind, convolves, always=always)
        periodic = self.events.has_periodic_hooks and choice == "auto"
        eager = periodic or self.events.has_host_step_hooks or not self.algorithm.is_compilable
        eager = eager or not self.algorithm.optimizer.is_compilable
        return None if part == "steps" and eager else part

    @cached_property
    def _program(self) -> Program | None:
        """The compiled part of the run; None = nothing is compiled.

        Raises:
            ConfigError: compiling is required, but there is no compiler or a callback observes the
                model between steps.
        """
        choice, part = self.algorithm.training.compile, self._part_to_compile
        if part is None:
            return None
        started = time.perf_counter()  # importing torch's compiler takes seconds
        keep_programs()
        if part == "steps" and self.events.has_periodic_hooks:
            raise ConfigError(
                f"training.compile={choice!r}: must be never with a callback that observes the "
                "model between steps, such as stability_gap: several steps are one program, and "
                "splitting it would change the last bits"
            )
        if not has_compiler(self.device_kind):
            if choice == "always":
                raise ConfigError(
                    "training.compile='always': needs a compiler, g++ or the one that the variable "
                    "CXX names"
                )
            return None
        if part == "steps" and not can_compile_steps():
            reason = f"torch {torch.__version__} cannot compile a step's gradients"
            if choice == "always":
                raise ConfigError(f"training.compile='always': {reason}; install a newer one")
            self.execution["not_compiled_because"] = reason
            return None
        program: Program
        if part == "network":
            program = CompiledNetwork(self.module)
        else:
            # A replay advances torch's generator itself; it has not been shown to draw the same
            # numbers as eager steps.
            can_replay = self.device_kind == "cuda" and not self.algorithm.backbone.is_noisy
            program = CompiledSteps(
                self._run_steps,
                self.algorithm.optimizer.hparams().keys() - {"lr"},
                device=self.device,
                capture=capture_graph if can_replay else None,
            )
        self.algorithm.progress.timing["compile_seconds"] += time.perf_counter() - started
        return program

    @contextmanager
    def _noise(self, first_step: int) -> Iterator[None]:
        """Seed torch's generator with the run's own key inside this block."""
        is_noisy = self.algorithm.backbone.is_noisy
        devices = [self.device] if self.device_kind == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=is_noisy):
            if is_noisy:
                torch.manual_seed(self.algorithm.random.key("noise", first_step))
            yield

    # ---- evaluation, tracing

    @torch.inference_mode()
    def count_correct(
        self, task: int, masks: Sequence[np.ndarray | None], split: str | None = None
    ) -> list[int]:
        algorithm, benchmark = self.algorithm, self.algorithm.benchmark
        key = split or algorithm.measured_on, task
        if key not in self._test_data:
            data = benchmark.task_data(task, key[0])
            self._test_data[key] = self.to_device(data.x), self.to_device(data.y).long()
        x, y = self._test_data[key]
        args = *algorithm.evaluation_weights(task), algorithm.evaluation_arrays(task)
        parts = x.split(benchmark.eval_batch_size)
        logits = torch.cat(
            [algorithm.evaluation_logits(*args, self.inputs(part)) for part in parts]
        )
        counts = []
        for mask in masks:
            allowed = logits
            if mask is not None:
                allowed = logits.masked_fill(self.to_device(~mask), -torch.inf)
            counts.append(int((allowed.argmax(1) == y).sum()))
        return counts

    def start_trace(self, folder: Path) -> None:
        from torch import profiler

        self._trace, self._trace_file = profiler.profile(), folder / "trace.json"
        self._trace.start()

    def stop_trace(self) -> None:
        """Write trace.json, in the format of Chrome's trace viewer."""
        self._trace.stop()
        self._trace.export_chrome_trace(str(self._trace_file))

    # ---- state as data

    def export_arrays(self) -> dict[str, np.ndarray]:
        groups = {"params": self.params, "stats": self.stats, "optimizer": self.opt_state}
        groups |= {"state": self.state, "kept": self.algorithm.persistent}
        named = flatten_state(groups)
        return {
            name: np.array(to_canonical(v.detach(), name).cpu().numpy(), order="C")  # a copy
            for name, v in named.items()
        }

    @torch.no_grad()
    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        loaded = {
            name: with_layout(from_canonical(torch.from_numpy(np.array(a)), name)).to(self.device)
            for name, a in arrays.items()
            if not name.startswith("memory/")
        }
        for name, parameter in self.params.items():
            parameter.copy_(loaded[f"params/{name}"])
        for name, statistic in self.stats.items():
            statistic.copy_(loaded[f"stats/{name}"])
        self.opt_state = unflatten_state(self.opt_state, "optimizer", loaded)
        self.state = unflatten_state(self.state, "state", loaded)
        kept = unflatten_state(self.algorithm.persistent, "kept", loaded)
        self.algorithm.persistent = kept


def _scheduled(hparams: dict[str, float], arrays: dict[str, Tensor]) -> dict[str, Any]:
    """Return a step's scalars, with the learning rate that its schedule gives."""
    if LR_FACTOR not in arrays:
        return hparams
    factor: Any = arrays[LR_FACTOR]
    factor = factor if torch.compiler.is_compiling() else float(factor)
    return hparams | {"lr": hparams["lr"] * factor}


def _precision() -> tuple[str, bool]:
    """Return torch's precision of float32 products, and whether cuDNN's convolutions use TF32."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def _set_precision(products: str, convolutions_in_tf32: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions_in_tf32


@contextmanager
def flush_denormals(num_threads: int) -> Iterator[None]:
    """Treat numbers below 1e-38 as 0 inside this block, as JAX does.

    Processors are many times slower on such denormal numbers. The momentum and the penalty of a
    weight that no longer changes decay to them. The setting applies to a single thread, and a
    pool's threads keep the setting they were started with: it only affects runs on one thread.
    """
    np.finfo(np.float32), np.finfo(np.float64)  # NumPy would warn at first use inside the block
    was_set = not bool(torch.tensor(1e-40) * 1.0)  # torch has no getter
    torch.set_flush_denormal(was_set or num_threads == 1)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_set)


def with_layout(value: Tensor) -> Tensor:
    """Return an array in the memory layout of the engine's arrays."""
    return value.contiguous(memory_format=LAYOUT if value.ndim == 4 else torch.contiguous_format)

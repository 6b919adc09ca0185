"""PyTorchBaseAlgorithm: the PyTorch engine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from seqrun.training.engine.arrays import flatten_state, unflatten_state
from seqrun.training.engine.compile import to_compile
from seqrun.training.engine.compile.torch import (
    CompiledNetwork,
    CompiledSteps,
    Program,
    capture_graph,
    has_compiler,
    keep_programs,
)
from seqrun.training.algorithm import BaseAlgorithm
from seqrun.training.step import Batch, Step
from seqrun.training.engine.threads import default_num_threads
from seqrun.backbones.torch import Encoder, normalised_inputs
from seqrun.benchmarks import Dataset
from seqrun.checks import ConfigError
from seqrun.training.limits import array_bytes
from seqrun.formulas.augmentation.torch import augmented
from seqrun.formulas.parameters.torch import canonical_names, from_canonical, to_canonical
from seqrun.formulas.torch import allow_classes, clip_by_global_norm, cross_entropy
from seqrun.plan import Chunk


LAYOUT = torch.channels_last
"""Of kernels, as of the images that they meet."""


class NoState(NamedTuple):
    """The state of an algorithm that keeps nothing between steps."""


@contextmanager
def flushed_denormals(num_threads: int) -> Iterator[None]:
    """Take numbers below 1e-38 for 0, as JAX does: a processor is many times slower on them.

    Momentum and penalties of weights that nothing moves fade into them. The setting is a thread's
    own, and those of a pool keep what they began with, so that it changes one-threaded runs only.
    """
    np.finfo(np.float32), np.finfo(np.float64)  # first asked for within, it would warn
    flushed_before = not bool(torch.tensor(1e-40) * 1.0)  # torch cannot be asked
    torch.set_flush_denormal(flushed_before or num_threads == 1)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)


def laid_out(value: Tensor) -> Tensor:
    """Return an array in the memory layout that the engine's own have."""
    return value.contiguous(memory_format=LAYOUT if value.ndim == 4 else torch.contiguous_format)


@dataclass(kw_only=True, eq=False)
class PyTorchBaseAlgorithm(BaseAlgorithm):
    """Walk the plan in a loop over live parameters; plain training if nothing is overridden.

    Attributes:
        module: the network, in train mode except inside `evaluating`.
        network: what a training step calls: the module, or its compiled passes.
        params, stats: canonical name -> live parameter or BatchNorm statistic (torch's layout).
        opt_state, state: NamedTuples of the optimizer and the algorithm.
    """

    backend: ClassVar[str] = "torch"
    gathered_steps: ClassVar[int] = 64
    """Steps whose inputs are gathered at a time: few enough to stay in a processor's cache."""
    is_compilable: ClassVar[bool] = True
    """Whether a step is short enough to be compiled as one program."""

    # ---- what an algorithm overrides, besides the hooks

    def build_module(self) -> nn.Module:
        """Return the network with all that trains: the backbone's, or one that holds it."""
        return self.backbone.build(self.benchmark.input_shape, self.benchmark.num_classes)

    def initial_state(self) -> Any:
        """Return the algorithm's NamedTuple of zeros."""
        return NoState()

    def training_loss(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the scalar task loss and the (B, C) logits of `step.batch`."""
        logits = allow_classes(self.network(step.batch.x), step.mask, step.batch.t)
        return cross_entropy(logits, step.batch.y), logits

    def forward(self, params: dict[str, Tensor], stats: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return the logits of a training forward with these parameters; `stats` move in place."""
        values = {self._module_names[n]: v for n, v in (params | stats).items()}
        return torch.func.functional_call(self.module, values, (x,))

    def predict(self, params: dict[str, Tensor], stats: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return the logits of an evaluation forward with these parameters and statistics."""
        values = {self._module_names[n]: v for n, v in (params | stats).items()}
        with self.evaluating():
            return torch.func.functional_call(self.module, values, (x,))

    def encode(
        self, params: Mapping[str, Tensor], stats: Mapping[str, Tensor], x: Tensor
    ) -> Tensor:
        """Return the classifier's input in an evaluation forward, as `predict`."""
        values = {f"module.{self._module_names[n]}": v for n, v in {**params, **stats}.items()}
        with self.evaluating():
            return torch.func.functional_call(Encoder(self.module), values, (x,))

    @torch.no_grad()
    def features(self, x: np.ndarray) -> np.ndarray:
        """Return the (N, D) features of stored images in eval mode."""
        parts = torch.from_numpy(x).to(self._device).split(self.benchmark.eval_batch_size)
        features = [self.encode(self.params, self.stats, self.inputs(part)) for part in parts]
        return torch.cat(features).cpu().numpy()

    def evaluation_logits(
        self, params: dict[str, Tensor], stats: dict[str, Tensor], reads: Any, x: Tensor
    ) -> Tensor:
        """Return the (B, C) numbers of which a prediction is the largest.

        Args:
            params, stats: `evaluation_weights` of the task.
            reads: `evaluation_reads` of the task.
            x: (B, H, W, C) inputs.
        """
        return self.predict(params, stats, x)

    # ---- the engine

    @classmethod
    def find_device(cls, device: str) -> str:
        """Return the kind of device: a GPU unless there is none or the CPU is asked for."""
        available = device != "cpu" and torch.cuda.is_available()
        if device == "cuda" and not available:
            raise ConfigError("device='cuda': torch finds no GPU here; must be auto or cpu")
        return "cuda" if available else "cpu"

    def start_engine(self) -> None:
        """Choose device and threads and build the module."""
        self.device_kind = self.find_device(self.device)
        self._device = torch.device(self.device_kind)
        self.check_size()  # before anything is as large
        with torch.random.fork_rng(devices=[]):  # for weights that a backbone keeps
            torch.manual_seed(self.random.key("init"))
            self.module = self.build_module().to(self._device)
            self.module.to(memory_format=LAYOUT)
        self.network: Callable[[Tensor], Tensor] = self.module
        self.params, self.stats = canonical_names(self.module)
        live = dict((*self.module.named_parameters(), *self.module.named_buffers()))
        names = {id(value): name for name, value in live.items()}
        self._module_names = {n: names[id(v)] for n, v in (self.params | self.stats).items()}
        self._built = {
            n: np.array(to_canonical(v.detach(), n).cpu().numpy())
            for n, v in (self.params | self.stats).items()
            if self.backbone.keeps(n)
        }
        self._threads_before = torch.get_num_threads()
        threads = self.num_threads or default_num_threads(self.work_per_batch())
        torch.set_num_threads(threads)
        self.execution |= {"num_threads": threads, "compiled": False}
        mean, std = self.benchmark.transform.mean, self.benchmark.transform.std
        self._mean = None if mean is None else torch.tensor(mean, device=self._device)
        self._std = None if std is None else torch.tensor(std, device=self._device)
        self._test_data: dict[int, tuple[Tensor, Tensor]] = {}

    def stop_engine(self) -> None:
        """Give back the threads and torch's settings."""
        program: Program | None = self.__dict__.pop("_program", None)
        if program is not None:
            program.close()
        if hasattr(self, "_threads_before"):
            torch.set_num_threads(self._threads_before)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return canonical name -> canonical shape."""
        return {name: tuple(to_canonical(p, name).shape) for name, p in self.params.items()}

    def carried_bytes(self, *, states: bool) -> int:
        """Return sizes by building the weights, and states if wanted, on torch's meta device."""
        blank = copy.copy(self)
        blank._device = torch.device("meta")
        with blank._device:
            blank.module = self.build_module()
            blank.params, blank.stats = canonical_names(blank.module)
            carried: list[Any] = [blank.params, blank.stats]
            if states:  # some of these take torch a second of imports
                blank.reset_optimizer()
                carried += [blank.opt_state, blank.initial_state(), blank.initial_kept()]
        return array_bytes(carried)

    def weights_are_finite(self) -> bool:
        """Return whether all parameters and statistics are finite."""
        return all(bool(v.isfinite().all()) for v in (self.params | self.stats).values())

    def built_weights(self) -> dict[str, np.ndarray]:
        """Return the parameters and statistics that the backbone keeps as they were built."""
        return self._built

    @torch.no_grad()
    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Start from canonical weights."""
        for name, parameter in self.params.items():
            parameter.copy_(from_canonical(torch.from_numpy(weights[name]), name))
        for name, statistic in self.stats.items():
            fresh = np.full(statistic.shape, float(name.endswith("var")), np.float32)
            statistic.copy_(torch.from_numpy(weights.get(name, fresh)))
        self.reset_optimizer()
        self.state = self.initial_state()
        self.module.train()

    def reset_optimizer(self) -> None:
        """Make the optimizer's state fresh."""
        self.opt_state = self.optimizer.init(self.params)

    def load_pool(self, dataset: Dataset) -> None:
        """Put the task's samples on the device, and its class mask."""
        x, y, t = (torch.from_numpy(a).to(self._device) for a in dataset)
        self.pool = Batch(x, y.long(), t.long())
        mask = self.training_mask()
        self._mask = None if mask is None else torch.from_numpy(mask).to(self._device)

    def inputs(self, x: Tensor) -> Tensor:
        """Return the network inputs of stored uint8 images."""
        return normalised_inputs(x, self._mean, self._std)

    def run_chunk(self, chunk: Chunk) -> None:
        """Walk the chunk's steps, the batches of a few gathered at a time."""
        rows = {n: torch.from_numpy(a).to(self._device) for n, a in chunk.arrays.items()}
        # Short stretches of batches are not worth a program of their own.
        program = self._program if chunk.segment_steps >= self.chunk_steps else None
        steps = program if isinstance(program, CompiledSteps) else None
        self.network = program if isinstance(program, CompiledNetwork) else self.module
        compiled, hyper = program.seconds if program else 0.0, self.hyper()
        losses, logits = [], []
        with self._noise(chunk.first_step):
            for piece in self.pieces(chunk):
                first = piece.first_step - chunk.first_step
                lengths = (steps or self).lengths(piece.steps)
                with flushed_denormals(self.execution["num_threads"]):
                    for reads, plan in self._stretches(rows, first, lengths):
                        self.opt_state, self.state, loss, logit = (steps or self._run_steps)(
                            reads, plan, self.opt_state, self.state, hyper
                        )
                        losses.append(loss)
                        logits.append(logit)
                self.pause(piece.first_step + piece.steps)
        if program is not None:
            self.timing["compile_seconds"] += program.seconds - compiled
            self.execution["compiled"] = program.failure is None and program.part
            if program.failure is not None:
                self.execution["not_compiled_because"] = program.failure
        if steps is not None:
            steps.end_chunk()
            if steps.has_captured is not None:
                self.execution["cuda_graphs"] = steps.has_captured
        chunk.losses = torch.cat(losses).cpu().numpy()
        labels = self.pool.y[rows["index"]]
        chunk.correct = (torch.cat(logits).argmax(-1) == labels).sum(1).cpu().numpy()

    def lengths(self, steps: int) -> list[int]:
        """Return how so many steps are cut into stretches whose inputs are gathered together."""
        whole, rest = divmod(steps, self.gathered_steps)
        return [self.gathered_steps] * whole + [rest] * (rest > 0)

    def _stretches(
        self, rows: Mapping[str, Tensor], first: int, lengths: list[int]
    ) -> Iterator[tuple[dict[str, Batch], dict[str, Tensor]]]:
        """Yield the reads and the plan's rows of stretches of steps, from a step of the chunk on.

        No stretch is longer than the steps that are gathered together.
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
        """Return what the steps of a slice of the plan read, by the name of the read."""
        offsets = {n: rows.get(f"augment/{n}") for n in self.pool_reads}
        return {
            n: self.gather(rows[n][cut], None if off is None else off[cut])
            for n, off in offsets.items()
        }

    def _run_steps(
        self,
        reads: dict[str, Batch],
        rows: dict[str, Tensor],
        opt_state: Any,
        state: Any,
        hyper: dict[str, float],
    ) -> tuple[Any, Any, Tensor, Tensor]:
        """Run the steps whose samples and plan rows are given, one after the other.

        Returns:
            What they leave of both states, their losses (steps,) and logits (steps, B, C).
        """
        batches = zip(*(map(Batch, *(a.unbind(0) for a in b)) for b in reads.values()), strict=True)
        plan = zip(*(a.unbind(0) for a in rows.values()), strict=True)
        losses, logits = [], []
        for given, row in zip(batches, plan, strict=True):
            step = Step(
                dict(zip(reads, given, strict=True)),
                self.params,
                self.stats,
                opt_state,
                state,
                hyper,
                self._mask,
                dict(zip(rows, row, strict=True)),
                self.pool,
            )
            self.training_step(step)
            opt_state, state = step.opt_state, step.state
            losses.append(step.loss)
            logits.append(step.logits)
        return opt_state, state, torch.stack(losses), torch.stack(logits)

    def gather(self, index: Tensor, offsets: Tensor | None = None) -> Batch:
        """Return the pool's samples, augmented if there are offsets.

        Args:
            index: (steps, B) rows of the pool.
            offsets: (steps, B, 3) crops and flips.

        Returns:
            Inputs (steps, B, H, W, C), labels and tasks (steps, B).
        """
        flat = index.flatten()
        if offsets is None:
            x = self.pool.x.index_select(0, flat)
        else:
            crop_padding = self.benchmark.crop_padding
            x = augmented(self.pool.x, flat, offsets.flatten(0, 1), crop_padding)
        y, t = (a.index_select(0, flat).view(index.shape) for a in self.pool[1:])
        return Batch(self.inputs(x.unflatten(0, index.shape)), y, t)

    def backward(self, step: Step) -> None:
        """Compute the task loss and its gradient."""
        loss, logits = self.training_loss(step)
        values = torch.autograd.grad(loss, list(self.params.values()))
        step.loss, step.logits = loss.detach(), logits.detach()
        step.gradients = dict(zip(self.params, values, strict=True))

    def optimizer_step(self, step: Step) -> None:
        """Clip the gradient and move the parameters in place."""
        if "grad_clip" in step.hyper:
            step.gradients = clip_by_global_norm(step.gradients, step.hyper["grad_clip"])
        step.params, step.opt_state = self.optimizer.update(
            step.gradients, step.opt_state, step.params, step.hyper
        )

    @property
    def _to_compile(self) -> str | None:
        """Return what `training.compile` has compiled, if that can be: "steps" or "network"."""
        convolves = any(p.ndim == 4 for p in self.params.values())
        work = self.total_steps, self.work_per_batch()
        choice, kind = self.training.compile, self.device_kind
        always = choice == "always"
        part = None if choice == "never" else to_compile(*work, kind, convolves, always=always)
        looks = self.has_host_step_hooks or (self._pausing and choice == "auto")
        return None if part == "steps" and (looks or not self.is_compilable) else part

    @cached_property
    def _program(self) -> Program | None:
        """Return the program of what is to be compiled, if there is a compiler.

        Raises:
            ConfigError: there is none and it has to be, or a callback has to look between steps.
        """
        choice, part = self.training.compile, self._to_compile
        if part is None:
            return None
        started = time.perf_counter()  # importing torch's compiler takes seconds
        keep_programs()
        if part == "steps" and self._pausing:
            raise ConfigError(
                f"training.compile={choice!r}: must be never with a callback that looks between "
                "steps, as stability_gap does: several steps are one program, and others than it "
                "would give other last bits"
            )
        if not has_compiler(self.device_kind):
            if choice == "always":
                raise ConfigError(
                    "training.compile='always': there is no compiler here, as g++ is, or what the "
                    "variable CXX names"
                )
            return None
        program: Program
        if part == "network":
            program = CompiledNetwork(self.module)
        else:
            # A replay moves torch's generator by itself; that it draws what eager steps would is
            # not shown.
            can_replay = self.device_kind == "cuda" and not self.backbone.is_noisy
            program = CompiledSteps(
                self._run_steps,
                self.optimizer.hparams().keys() - {"lr"},
                device=self._device,
                capture=capture_graph if can_replay else None,
            )
        self.timing["compile_seconds"] += time.perf_counter() - started
        return program

    @contextmanager
    def _noise(self, first_step: int) -> Iterator[None]:
        """Draw noise from the run's own key, leaving torch's global generator as it was."""
        if not self.backbone.is_noisy:
            yield
            return
        devices = [self._device] if self.device_kind == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.random.key("noise", first_step))
            yield

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return copies of parameters and statistics, which training leaves alone."""
        params = {n: p.detach().clone() for n, p in self.params.items()}
        return params, {n: s.clone() for n, s in self.stats.items()}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the module in eval mode for a while, then as it was."""
        before = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(before)

    @torch.inference_mode()
    def count_correct(self, task: int, masks: list[np.ndarray | None]) -> list[int]:
        """Count the correct predictions on a task's test data under each mask of classes."""
        if task not in self._test_data:
            data = self.benchmark.task_data(task, self.benchmark.evaluation_split)
            x, y = torch.from_numpy(data.x), torch.from_numpy(data.y).long()
            self._test_data[task] = x.to(self._device), y.to(self._device)
        x, y = self._test_data[task]
        parts = x.split(self.benchmark.eval_batch_size)
        known = *self.evaluation_weights(task), self.evaluation_reads(task)
        logits = torch.cat([self.evaluation_logits(*known, self.inputs(part)) for part in parts])
        counts = []
        for mask in masks:
            allowed = logits
            if mask is not None:
                denied = torch.from_numpy(~mask).to(self._device)
                allowed = logits.masked_fill(denied, -torch.inf)
            counts.append(int((allowed.argmax(1) == y).sum()))
        return counts

    def start_trace(self, folder: Path) -> None:
        """Begin to trace operators."""
        from torch import profiler

        self._trace, self._trace_file = profiler.profile(), folder / "trace.json"
        self._trace.start()

    def stop_trace(self) -> None:
        """Write trace.json, in Chrome's format."""
        self._trace.stop()
        self._trace.export_chrome_trace(str(self._trace_file))

    # ---- state as data

    def export_arrays(self) -> dict[str, np.ndarray]:
        """Return everything that a run carries, by canonical name and in canonical layout."""
        groups = {"params": self.params, "stats": self.stats}
        groups |= {"optimizer": self.opt_state, "state": self.state, "kept": self.kept}
        named = flatten_state(groups)
        return {
            name: np.array(to_canonical(v.detach(), name).cpu().numpy(), order="C")  # a copy
            for name, v in named.items()
        }

    @torch.no_grad()
    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from exported arrays."""
        loaded = {
            name: laid_out(from_canonical(torch.from_numpy(np.array(a)), name)).to(self._device)
            for name, a in arrays.items()
            if not name.startswith("memory/")
        }
        for name, parameter in self.params.items():
            parameter.copy_(loaded[f"params/{name}"])
        for name, statistic in self.stats.items():
            statistic.copy_(loaded[f"stats/{name}"])
        self.opt_state = unflatten_state(self.opt_state, "optimizer", loaded)
        self.state = unflatten_state(self.state, "state", loaded)
        self.kept = unflatten_state(self.kept, "kept", loaded)

"""Engine: what runs an algorithm's steps on a device, on either framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from seqrun.benchmarks import Dataset
from seqrun.plan import Chunk
from seqrun.training.step import Step


class StepEvents(Protocol):
    """What an engine runs steps by (`seqrun.training.events.Events`)."""

    has_host_step_hooks: bool
    looks_between_steps: bool

    def run_step(self, step: Step) -> None:
        """Run one step and the hooks around its parts."""

    def segments(self, chunk: Chunk) -> list[Chunk]:
        """Return a chunk cut where a callback looks at the model."""

    def end_segment(self, step: int) -> None:
        """Let callbacks look at the model."""


class Engine(ABC):
    """Device, compiled programs, steps and evaluation of one run.

    Attributes:
        device_kind: "cpu" or "cuda", known when the engine has started.
        execution: how the run is executed, for its record.
        total_steps: that the run plans.
        chunk_steps: longest chunk of steps that one call runs.
        events: what steps are run by; set by the trainer.
        participant: what makes this run one of several that share compiled calls; None = it is
            alone.
    """

    gathered_steps: ClassVar[int] = 1
    """Steps whose inputs are held at a time."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self.device_kind = "cpu"
        self.execution: dict[str, Any] = {"strategy": "sequential"}
        self.total_steps = 0
        self.chunk_steps = 1
        self.events: StepEvents
        self.participant: Any = None

    @classmethod
    @abstractmethod
    def find_device(cls, device: str) -> str:
        """Return "cpu" or "cuda", the kind of device that `device` means here.

        Raises:
            ConfigError: "cuda" is asked for and the framework finds no GPU.
        """

    @classmethod
    def new_ensemble(cls) -> Any:
        """Return a new `vmap.BaseEnsemble` for several runs; None = the engine has none."""
        return None

    @property
    def device_bytes(self) -> int | None:
        """Bytes of a device's own memory; None: it is the machine's."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Choose device and threads and build the module (no weights yet)."""

    @abstractmethod
    def stop(self) -> None:
        """Undo the process-wide settings of `start`."""

    # ---- the network

    @property
    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Canonical name -> live parameter, in the framework's layout."""

    @property
    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Canonical name -> BatchNorm statistic, in the framework's layout."""

    @property
    @abstractmethod
    def state(self) -> Any:
        """The algorithm's NamedTuple, which its steps read and write."""

    @state.setter
    @abstractmethod
    def state(self, state: Any) -> None: ...

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return canonical name -> canonical shape of every parameter."""

    @abstractmethod
    def carried_bytes(self, *, states: bool) -> int:
        """Return the size of the weights, and of what else a run carries if `states`.

        From shapes alone: nothing large is made, and the data need not be there if the shapes of
        inputs and outputs are known.
        """

    @abstractmethod
    def state_arrays(self) -> Sequence[Any]:
        """Return what the run carries besides its parameters, as far as it is there."""

    @abstractmethod
    def weights_are_finite(self) -> bool:
        """Return whether all parameters and statistics are finite numbers."""

    @abstractmethod
    def built_weights(self) -> dict[str, np.ndarray]:
        """Return the parameters and statistics that the module was built with, canonical."""

    @abstractmethod
    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Start from canonical `weights`, fresh optimizer and algorithm state.

        A statistic that is not among the weights starts fresh: a mean at 0, a variance at 1.
        The algorithm's persistent state stays as it is.
        """

    @abstractmethod
    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return parameters and statistics as they are now, which training leaves alone."""

    @abstractmethod
    def reset_optimizer(self) -> None:
        """Make the optimizer's state fresh."""

    @abstractmethod
    def to_device(self, array: np.ndarray) -> Any:
        """Return an array on the device."""

    # ---- training

    @abstractmethod
    def load_dataset(self, dataset: Dataset, mask: np.ndarray | None) -> None:
        """Put the samples that plan indices point into on the device, and the class mask."""

    @abstractmethod
    def run_chunk(self, chunk: Chunk) -> None:
        """Run the chunk's training steps; fill in its losses and correct counts."""

    @abstractmethod
    def compiled_alone(self, function: Callable[[Step], None]) -> Callable[[Step], None]:
        """Return a part of a training step as it is called between hooks that run on the host."""

    # ---- evaluation, tracing

    @abstractmethod
    def count_correct(self, task: int, masks: Sequence[np.ndarray | None]) -> list[int]:
        """Count, per mask (C,) of allowed classes, what is right on a task's test data."""

    @abstractmethod
    def start_trace(self, folder: Path) -> None:
        """Begin to trace what the framework does, into `folder`."""

    @abstractmethod
    def stop_trace(self) -> None:
        """End the trace and write it."""

    # ---- state as data

    @abstractmethod
    def export_arrays(self) -> dict[str, np.ndarray]:
        """Return parameters, statistics, optimizer and algorithm state by canonical name."""

    @abstractmethod
    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Undo `export_arrays`."""

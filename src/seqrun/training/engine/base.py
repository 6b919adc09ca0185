"""Engine: runs the steps of an algorithm on a device; one subclass per framework."""

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
    """The part of `seqrun.training.events.Events` that engines use."""

    has_host_step_hooks: bool
    has_periodic_hooks: bool

    def run_step(self, step: Step) -> None:
        """Run one step and the hooks around its parts."""

    def segments(self, chunk: Chunk) -> list[Chunk]:
        """Return the chunk, split after the steps at which `on_every_n_steps` is due."""

    def end_segment(self, step: int) -> None:
        """Call `on_every_n_steps` of the callbacks for which it is due."""


class Engine(ABC):
    """Device, compiled programs, steps and evaluation of one run.

    Attributes:
        device_kind: "cpu" or "cuda", known when the engine has started.
        execution: how the run is executed, for its record.
        total_steps: training steps planned for the run.
        chunk_steps: largest number of steps in one chunk.
        events: runs each step and its hooks; set by the trainer.
        participant: this run's place among several runs that share compiled calls; None = the run
            is on its own.
    """

    gathered_steps: ClassVar[int] = 1
    """Steps whose inputs are in memory at the same time."""

    def __init__(self) -> None:
        self.device_kind = "cpu"
        self.execution: dict[str, Any] = {"strategy": "sequential"}
        self.total_steps = 0
        self.chunk_steps = 1
        self.events: StepEvents
        self.participant: Any = None

    @classmethod
    @abstractmethod
    def find_device(cls, device: str) -> str:
        """Return "cpu" or "cuda"; "auto" is "cuda" if the framework finds a GPU.

        Raises:
            ConfigError: `device` is "cuda" and the framework finds no GPU.
        """

    @classmethod
    def new_vmap_group(cls) -> Any:
        """Return a new `vmap.BaseVmapGroup`; None = runs cannot share compiled calls."""
        return None

    @property
    def device_bytes(self) -> int | None:
        """Size of the device's own memory; None = it uses the memory of the machine."""
        return None

    @abstractmethod
    def start(self, num_threads: int | None = None) -> None:
        """Choose device and threads, and build the module; its weights are not set yet.

        Args:
            num_threads: those with which the run that is continued began; None = as the options or
                the fixed rule say.

        Raises:
            ConfigError: this process cannot have `num_threads`.
        """

    @abstractmethod
    def stop(self) -> None:
        """Undo the process-wide settings of `start`."""

    # ---- the network

    @property
    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Canonical name -> current parameter, in the framework's layout."""

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
        """Return the bytes of all weights and, if `states`, of optimizer and algorithm state.

        They are computed from shapes, without allocating arrays. The data need not be prepared if
        the shapes of inputs and outputs are known.
        """

    @abstractmethod
    def state_arrays(self) -> Sequence[Any]:
        """Return statistics, optimizer state and algorithm state, if they exist already."""

    @abstractmethod
    def weights_are_finite(self) -> bool:
        """Return whether all parameters and statistics are finite."""

    @abstractmethod
    def built_weights(self) -> dict[str, np.ndarray]:
        """Return canonical name -> initial value from the module's own initializers.

        The result has at least the weights that the backbone keeps (`BaseBackbone.keeps`).
        """

    @abstractmethod
    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set the canonical `weights`; reset optimizer and algorithm state.

        A statistic that `weights` lacks is reset: a mean to 0, a variance to 1. The algorithm's
        persistent state is not changed.
        """

    @abstractmethod
    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the current parameters and statistics, in arrays that training does not change."""

    @abstractmethod
    def reset_optimizer(self) -> None:
        """Reset the optimizer's state."""

    @abstractmethod
    def to_device(self, array: np.ndarray) -> Any:
        """Return `array` on the device."""

    # ---- training

    @abstractmethod
    def load_dataset(self, dataset: Dataset, mask: np.ndarray | None) -> None:
        """Move the replay dataset and the class mask (T, C) to the device."""

    @abstractmethod
    def run_chunk(self, chunk: Chunk) -> None:
        """Run the chunk's training steps; fill in its losses and correct counts."""

    @abstractmethod
    def compiled_part(self, function: Callable[[Step], None]) -> Callable[[Step], None]:
        """Return a part of a training step, to be called between hooks that run on the host."""

    # ---- evaluation, tracing

    @abstractmethod
    def count_correct(
        self, task: int, masks: Sequence[np.ndarray | None], split: str | None = None
    ) -> list[int]:
        """Return the number of correct predictions on a task's data under each class mask.

        `prepare_evaluation` of the algorithm has been called.

        Args:
            task: 1-based.
            masks: (C,) bool each, the classes that can be predicted; None = all.
            split: "test" or "validation"; None = the data of the accuracy matrix.
        """

    @abstractmethod
    def start_trace(self, folder: Path) -> None:
        """Start the framework's profiler; its trace goes into `folder`."""

    @abstractmethod
    def stop_trace(self) -> None:
        """Stop the profiler and write the trace."""

    # ---- state as data

    @abstractmethod
    def export_arrays(self) -> dict[str, np.ndarray]:
        """Return parameters, statistics and states by canonical name, in canonical layout."""

    @abstractmethod
    def import_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what `export_arrays` returned."""

"""TimingCallback: where a run's time goes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from seqrun.training.callback import BaseCallback

if TYPE_CHECKING:
    from seqrun.algorithms.base import BaseAlgorithm

FILE = "timing.jsonl"


@dataclass(kw_only=True, eq=False)
class TimingCallback(BaseCallback):
    """Write timing.jsonl: one line per phase of the run with the seconds that it took.

    Phases are "setup", "epoch", "task" (with its epochs, and the algorithm's work after them),
    "validation" and "fit" (all but setup), each with the steps done in it. A resumed run adds
    lines to what is there, each of time that was really spent; a phase that was cut off has no
    line. A clock is not reproducible, which is why these stand in no other file.
    """

    products: ClassVar[tuple[str, ...]] = (FILE,)

    _started: dict[str, tuple[float, int]] = field(default_factory=dict, init=False, repr=False)
    _lines: list[str] = field(default_factory=list, init=False, repr=False)

    def on_before_setup(self, algorithm: BaseAlgorithm) -> None:
        """Start."""
        self._start("setup", algorithm)

    def on_after_setup(self, algorithm: BaseAlgorithm) -> None:
        """Begin the file anew unless the run is resumed."""
        resumed = algorithm.global_step > 0 or algorithm.task_is_done
        if algorithm.run_dir is not None and not resumed:
            (algorithm.run_dir / FILE).unlink(missing_ok=True)
        started, _ = self._started["setup"]
        self._started["setup"] = started, algorithm.global_step
        self._end("setup", algorithm)

    def on_before_fit(self, algorithm: BaseAlgorithm) -> None:
        """Start."""
        self._start("fit", algorithm)

    def on_after_fit(self, algorithm: BaseAlgorithm) -> None:
        """End."""
        self._end("fit", algorithm)

    def on_before_task(self, algorithm: BaseAlgorithm) -> None:
        """Start."""
        self._start("task", algorithm)

    def on_after_task(self, algorithm: BaseAlgorithm) -> None:
        """End."""
        self._end("task", algorithm, task=algorithm.task)

    def on_before_epoch(self, algorithm: BaseAlgorithm) -> None:
        """Start."""
        self._start("epoch", algorithm)

    def on_after_epoch(self, algorithm: BaseAlgorithm) -> None:
        """End."""
        self._end("epoch", algorithm, task=algorithm.task, epoch=algorithm.epoch)

    def on_before_validation(self, algorithm: BaseAlgorithm) -> None:
        """Start."""
        self._start("validation", algorithm)

    def on_after_validation(self, algorithm: BaseAlgorithm) -> None:
        """End."""
        self._end("validation", algorithm, task=algorithm.task, epoch=algorithm.epoch)

    def on_before_teardown(self, algorithm: BaseAlgorithm) -> None:
        """Write what is left, after a failure too."""
        self._write(algorithm)

    def _start(self, phase: str, algorithm: BaseAlgorithm) -> None:
        self._started[phase] = time.perf_counter(), algorithm.global_step

    def _end(self, phase: str, algorithm: BaseAlgorithm, **place: Any) -> None:
        started, first_step = self._started[phase]
        seconds = round(time.perf_counter() - started, 6)
        steps = algorithm.global_step - first_step
        line = {"phase": phase, **place, "steps": steps, "seconds": seconds}
        self._lines.append(json.dumps(line) + "\n")
        if phase == "validation":
            self._write(algorithm)

    def _write(self, algorithm: BaseAlgorithm) -> None:
        if algorithm.run_dir is not None and self._lines:
            algorithm.run_dir.mkdir(parents=True, exist_ok=True)
            with open(algorithm.run_dir / FILE, "a", encoding="utf-8") as file:
                file.writelines(self._lines)
        self._lines = []

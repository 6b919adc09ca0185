"""TimingCallback: records the time of each phase of a run."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

from seqrun.training.callback import BaseCallback, Run

FILE = "timing.jsonl"


@dataclass(kw_only=True, eq=False)
class TimingCallback(BaseCallback):
    """Write timing.jsonl: one line per phase of the run with the seconds that it took.

    Phases are "setup", "epoch", "task" (its epochs and the algorithm's work after them),
    "validation" and "fit" (everything but setup). Each line also has the number of steps done in
    the phase. A resumed run appends lines for the time that it takes itself; a phase that was
    interrupted has no line. Times are not reproducible, which is why no other file contains them.
    """

    products: ClassVar[tuple[str, ...]] = (FILE,)

    _started: dict[str, tuple[float, int]] = field(default_factory=dict, init=False, repr=False)
    _lines: list[str] = field(default_factory=list, init=False, repr=False)

    def on_before_setup(self, run: Run) -> None:
        self._start("setup", run)

    def on_after_setup(self, run: Run) -> None:
        """Remove an earlier file unless the run is resumed."""
        resumed = run.step > 0 or run.progress.task_is_done
        if run.directory is not None and not resumed:
            (run.directory / FILE).unlink(missing_ok=True)
        started, _ = self._started["setup"]
        self._started["setup"] = started, run.step
        self._end("setup", run)

    def on_before_fit(self, run: Run) -> None:
        self._start("fit", run)

    def on_after_fit(self, run: Run) -> None:
        self._end("fit", run)

    def on_before_task(self, run: Run) -> None:
        self._start("task", run)

    def on_after_task(self, run: Run) -> None:
        self._end("task", run, task=run.task)

    def on_before_epoch(self, run: Run) -> None:
        self._start("epoch", run)

    def on_after_epoch(self, run: Run) -> None:
        self._end("epoch", run, task=run.task, epoch=run.epoch)

    def on_before_validation(self, run: Run) -> None:
        self._start("validation", run)

    def on_after_validation(self, run: Run) -> None:
        self._end("validation", run, task=run.task, epoch=run.epoch)

    def on_before_teardown(self, run: Run) -> None:
        """Write the remaining lines, also after a failure."""
        self._write(run)

    def _start(self, phase: str, run: Run) -> None:
        self._started[phase] = time.perf_counter(), run.step

    def _end(self, phase: str, run: Run, **place: Any) -> None:
        started, first_step = self._started[phase]
        seconds = round(time.perf_counter() - started, 6)
        steps = run.step - first_step
        line = {"phase": phase, **place, "steps": steps, "seconds": seconds}
        self._lines.append(json.dumps(line) + "\n")
        if phase == "validation":
            self._write(run)

    def _write(self, run: Run) -> None:
        if run.directory is not None and self._lines:
            run.directory.mkdir(parents=True, exist_ok=True)
            with open(run.directory / FILE, "a", encoding="utf-8") as file:
                file.writelines(self._lines)
        self._lines = []

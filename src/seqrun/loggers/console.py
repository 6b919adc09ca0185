"""ConsoleLogger: what a run does and found, as tables on standard output."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrun.loggers.base import BaseLogger, RunInfo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from seqrun.records.results import Results

MAX_ROWS = 26
LABEL_WIDTH = len("untrained")
AVERAGE_WIDTH = len("average")
CELL_WIDTH = len("100.0")


@dataclass(kw_only=True, eq=False)
class ConsoleLogger(BaseLogger):
    """Print one line at the start, one per task, and the accuracy matrix and metrics at the end.

    With several seeds each one's run ends in a single line, for a table over all of them follows.

    Plain text without colours when standard output is not a terminal.
    """

    _run: RunInfo | None = field(default=None, init=False, repr=False)
    _console: Any = field(default=None, init=False, repr=False)
    _started: float = field(default=0.0, init=False, repr=False)
    _values: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _epoch: int = field(default=0, init=False, repr=False)
    _task: int = field(default=0, init=False, repr=False)
    _matrix: np.ndarray | None = field(default=None, init=False, repr=False)
    _summary: dict[str, float | None] = field(default_factory=dict, init=False, repr=False)

    def open(self, run: RunInfo) -> None:
        """Print what runs."""
        self._run, self._console, self._started = run, new_console(), time.perf_counter()
        self._values, self._summary, self._task = {}, {}, 0
        self._matrix = run.matrices.get("accuracy_matrix")
        if self._matrix is not None:
            self._task = int(np.flatnonzero(~np.isnan(self._matrix).all(1)).max(initial=0))
        name = run.name
        parts = [f"{name['algo']} on {name['benchmark']}", name["backbone"], name["backend"]]
        parts += [f"seed {run.seed}", f"{run.num_tasks} task{'s' * (run.num_tasks != 1)}"]
        if "device" in run.config:
            parts.append(f"device {run.config['device']}")
        if run.resumed_at is not None:
            parts.append(f"continues at step {run.resumed_at}")
        _line(self._console, parts, style="bold")

    def log(self, values: Mapping[str, float], *, step: int, epoch: int, task: int) -> None:
        """Keep `values` for the task's line."""
        self._values.update(values)
        self._epoch = epoch

    def log_steps(
        self, name: str, values: np.ndarray, *, first_step: int, epoch: int, task: int
    ) -> None:
        """Show no single step."""

    def log_matrix(self, name: str, matrix: np.ndarray, *, step: int, task: int) -> None:
        """Print the line of the task that was just measured."""
        if name != "accuracy_matrix":
            return
        self._matrix, self._task = matrix.copy(), task
        if task == 0:
            return  # the untrained model is a row of the final table
        run = self._opened()
        width = len(str(run.num_tasks))
        parts = [f"task {task:{width}d}/{run.num_tasks}"]
        if run.config.get("training", {}).get("evaluate_every") == "epoch":
            parts.append(f"epoch {self._epoch}")
        shown = {
            "accuracy": self._values.get(f"accuracy/task_{task}"),
            "average": self._values.get("average_accuracy"),
            "forgetting": self._values.get("average_forgetting"),
        }
        parts += [f"{label} {_points(v):5.1f} %" for label, v in shown.items() if v is not None]
        _line(self._console, [*parts, f"{self._seconds():.1f} s"])
        self._values = {}  # a metric that the next row leaves undefined must not show an old value

    def log_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Keep the final metrics for the end."""
        self._summary = dict(metrics)

    def close(self, status: str) -> None:
        """Print the accuracy matrix, the metrics and a last line that says it all."""
        if self._run is None:  # the run ended before it was opened
            return
        run, console, self._run = self._run, self._console, None
        if status != "completed":
            where = f"in task {self._task + 1}/{run.num_tasks}"
            done = [f"{status} {where}" if self._task < run.num_tasks else status]
            _line(
                console, [*done, f"{self._seconds():.1f} s", *_place(run.directory)], style="bold"
            )
            return
        several = isinstance(seeds := run.config.get("seed"), list) and len(seeds) > 1
        if self._matrix is not None and not several:
            _line(console, [f"\naccuracy (%) on {run.measured_on} data, by task"])
            console.print(accuracy_table(self._matrix, console.width))
        if self._summary and not several:
            values = [[_label(k), _percent(v)] for k, v in self._summary.items()]
            console.print(_table(["metric", ""], values))
        parts = [_headline({k: _percent(v) for k, v in self._summary.items() if v is not None})]
        parts += [f"{self._seconds():.1f} s", *_place(run.directory)]
        _line(console, [part for part in parts if part], style="bold")

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _opened(self) -> RunInfo:
        if self._run is None:
            raise RuntimeError("no run is open: call open(RunInfo) first")
        return self._run


def new_console() -> Console:
    """Return a rich console on standard output, plain when that is not a terminal."""
    from rich.console import Console

    return Console(highlight=False)


def show_results(results: Results, console: Console | None = None) -> None:
    """Print a run directory's record: mean accuracy matrix, metrics over its seeds, a last line."""
    console = console or new_console()
    name = results.name
    seeds = ", ".join(str(run.seed) for run in results.runs)
    parts = [f"{name['algo']} on {name['benchmark']}", name["backbone"], name["backend"]]
    parts.append(f"seed{'s' * (len(results.runs) != 1)} {seeds or 'none yet'}")
    _line(console, parts, style="bold")
    if not results.runs:
        _line(console, [results.status, *_place(results.directory)], style="bold")
        return
    mean = ", mean over seeds" if len(results.runs) > 1 else ""
    _line(console, [f"\naccuracy (%) on {results.measured_on} data, by task{mean}"])
    console.print(accuracy_table(results.mean_matrix, console.width))
    summary = results.summary
    if len(results.runs) > 1:
        header = ["metric", "mean", "std", "95 % interval", "seeds"]
        rows = [[_label(key), *_spread(value)] for key, value in summary.items()]
    else:
        header = ["metric", ""]
        rows = [[_label(key), _percent(value["mean"])] for key, value in summary.items()]
    console.print(_table(header, rows))
    shown = {
        key: _percent(value["mean"])
        if value["ci95"] is None
        else f"{_points(value['mean']):.1f} ± {_points(value['ci95'][1] - value['mean']):.1f} %"
        for key, value in summary.items()
        if value["mean"] is not None
    }
    show_verdict(results, console)
    status = [] if results.status == "completed" else [results.status]
    parts = [*status, _headline(shown), *_place(results.directory)]
    _line(console, [part for part in parts if part], style="bold")


def show_verdict(results: Results, console: Console | None = None) -> None:
    """Print the verdict of a reproduction: each published number, what was measured, and where."""
    verdict = results.verdict
    if verdict is None:
        return
    console = console or new_console()
    rows = []
    for name, found in verdict["metrics"].items():
        signed = found["difference"]
        rows.append(
            [
                _label(name),
                _with_spread(found["expected"], found["expected_std"]),
                _with_spread(found["mean"], found["half_width"]),
                "" if signed is None else f"{_points(signed):+.1f}",
                f"{_points(found['tolerance']):.1f}",
                found["verdict"],
            ]
        )
    header = ["metric", "published", "measured", "difference", "tolerance", "verdict"]
    console.print(_table(header, rows))
    first = next(iter(verdict["metrics"].values()))
    seeds = first["seeds"]
    parts = [f"verdict: {verdict['verdict']}", f"{seeds} seed{'s' * (seeds != 1)}"]
    parts += [f"{verdict['paper']}, {verdict['table']}", f"the number is {verdict['status']}"]
    if verdict["measured_on"] != "test":
        parts.append(f"measured on {verdict['measured_on']} data")
    if verdict["changed"]:
        parts.append(f"not the protocol as it stands: {' '.join(verdict['changed'])}")
    _line(console, parts, style="bold")


def _with_spread(value: float | None, spread: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{_points(value):.1f}" + ("" if spread is None else f" ± {_points(spread):.1f}")


def accuracy_table(matrix: np.ndarray, width: int) -> Table:
    """Return the accuracy matrix as a table of percentages that fits into `width` characters.

    Rows are after each task, columns tasks, and the last column the average over the tasks seen.
    Columns (and rows beyond 26) that do not fit are left out in the middle, at an ellipsis; the
    average is over all tasks seen, shown or not.

    Args:
        matrix: (T+1, T) float, fractions; row 0 = untrained, NaN = not measured.
        width: characters, at least 40 to be readable.
    """
    from rich.text import Text

    tasks = matrix.shape[1]
    room = (width - LABEL_WIDTH - AVERAGE_WIDTH - 4) // (CELL_WIDTH + 1)
    columns = _elide(list(range(1, tasks + 1)), max(3, room))
    header = ["after"] + [("..." if j is None else str(j)) for j in columns] + ["average"]
    rows: list[list[Any]] = []
    for after in _elide(list(range(tasks + 1)), MAX_ROWS):
        if after is None:
            rows.append(["..."] * len(header))
            continue
        cells = [Text("untrained" if after == 0 else f"task {after}")]
        for j in columns:
            text = "..." if j is None else _number(matrix[after, j - 1])
            style = "bold" if j == after else "dim" if j is not None and j > after else ""
            cells.append(Text(text, style=style))
        seen = matrix[after, :after]
        cells.append(Text(_number(seen.mean()) if after else ""))
        rows.append(cells)
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold",
    )
    for place, name in enumerate(header):
        # Where it does not fit, names take two lines and no number is cut.
        table.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    for row in rows:
        table.add_row(*row)
    return table


def _elide(items: list[int], room: int) -> list[int | None]:
    """Return the first and last of `items` around a None, `room` entries in all, if too many."""
    if len(items) <= room:
        return list(items)
    first = (room - 1) // 2
    return [*items[:first], None, *items[len(items) - (room - 1 - first) :]]


def _line(console: Console, parts: Sequence[str], style: str = "") -> None:
    """Print one line, never wrapped; ASCII where the output's encoding lacks the separator."""
    line = " · ".join(parts)
    if not console.encoding.lower().startswith("utf"):
        line = line.replace("·", "-").replace("±", "+-")
    console.print(line, style=style, soft_wrap=True, markup=False)


def _headline(values: Mapping[str, str]) -> str:
    named = ("average_accuracy", "average_forgetting")
    return ", ".join(f"{_label(key)} {values[key]}" for key in named if key in values)


def _label(metric: str) -> str:
    return metric.removesuffix("_task_aware").replace("_", " ") + (
        ", task given" if metric.endswith("_task_aware") else ""
    )


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{_points(value):.1f} %"


def _points(fraction: float) -> float:
    """Return percentage points to one decimal, and never -0.0."""
    return round(100 * fraction, 1) + 0.0


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{_points(value):.1f}"


def _spread(value: Mapping[str, Any]) -> list[str]:
    if value["mean"] is None:
        return ["undefined", "", "", "0"]
    if value["std"] is None:
        return [_percent(value["mean"]), "", "", str(value["n"])]
    low, high = value["ci95"]
    interval = f"{_points(low):.1f} to {_points(high):.1f}"
    return [_percent(value["mean"]), f"{_points(value['std']):.1f}", interval, str(value["n"])]


def _place(directory: Path | None) -> list[str]:
    """Return the directory as a person would type it from here."""
    if directory is None:
        return []
    relative = os.path.relpath(directory)
    return [str(directory) if relative.startswith("..") else relative]

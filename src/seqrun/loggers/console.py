"""ConsoleLogger: prints progress and results of a run to standard output."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrun.evaluation.metrics import half_width
from seqrun.evaluation.text import metric_label, percent, points
from seqrun.loggers.base import BaseLogger, RunInfo, opened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from seqrun.records.results import Results

MEANINGS = {
    "reproduced": "the difference is within the band",
    "above": "higher than published, by more than the band",
    "below": "lower than published, by more than the band",
    "inconclusive": "the interval of the difference is partly in the band",
}
"""What the words of a verdict mean."""
MAX_ROWS = 26
LABEL_WIDTH = len("untrained")
AVERAGE_WIDTH = len("average")
CELL_WIDTH = len("100.0")


@dataclass(kw_only=True, eq=False)
class ConsoleLogger(BaseLogger):
    """Print one line at the start, one per task, and the accuracy matrix and metrics at the end.

    With several seeds each run ends with a single line, since a table of all seeds follows. If
    standard output is not a terminal, the output is plain text without colours.
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
        """Print a line that describes the run."""
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
        _print_line(self._console, parts, style="bold")

    def log(self, values: Mapping[str, float], *, step: int, epoch: int, task: int) -> None:
        """Store `values` for the task's line."""
        self._values.update(values)
        self._epoch = epoch

    def log_steps(
        self, name: str, values: np.ndarray, *, first_step: int, epoch: int, task: int
    ) -> None:
        """Ignore values of single steps."""

    def log_matrix(self, name: str, matrix: np.ndarray, *, step: int, task: int) -> None:
        """Print the line of the task that was just evaluated."""
        if name != "accuracy_matrix":
            return
        self._matrix, self._task = matrix.copy(), task
        if task == 0:
            return  # the untrained model is only in the final table
        run = opened(self._run)
        width = len(str(run.num_tasks))
        parts = [f"task {task:{width}d}/{run.num_tasks}"]
        if run.config.get("training", {}).get("evaluate_every") == "epoch":
            parts.append(f"epoch {self._epoch}")
        shown = {
            "accuracy": self._values.get(f"accuracy/task_{task}"),
            "average": self._values.get("average_accuracy"),
            "forgetting": self._values.get("average_forgetting"),
        }
        parts += [f"{label} {points(v):5.1f} %" for label, v in shown.items() if v is not None]
        _print_line(self._console, [*parts, f"{self._seconds():.1f} s"])
        self._values = {}  # so that an undefined metric does not show an old value

    def log_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Store the final metrics until `close`."""
        self._summary = dict(metrics)

    def close(self, status: str) -> None:
        """Print the accuracy matrix, the metrics and a summary line."""
        if self._run is None:  # the run failed before `open`
            return
        run, console, self._run = self._run, self._console, None
        if status == "interrupted":
            return  # the command says so in its last line
        if status != "completed":
            if self._task < run.num_tasks:
                status += f" in task {self._task + 1}/{run.num_tasks}"
            parts = [status, f"{self._seconds():.1f} s", *_relative(run.directory)]
            _print_line(console, parts, style="bold")
            return
        several = isinstance(seeds := run.config.get("seed"), list) and len(seeds) > 1
        if self._matrix is not None and not several:
            _print_line(console, [f"\naccuracy (%) on {_data(run)}, by task"])
            console.print(accuracy_table(self._matrix, console.width))
        if self._summary and not several:
            values = [[metric_label(k), _percent(v)] for k, v in self._summary.items()]
            console.print(_rich_table(["metric", ""], values))
        parts = [_headline({k: _percent(v) for k, v in self._summary.items() if v is not None})]
        parts += [f"{self._seconds():.1f} s", *_relative(run.directory)]
        _print_line(console, [part for part in parts if part], style="bold")

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _data(run: RunInfo | Results) -> str:
    """Return what a run was measured on, and selected on if that is something else."""
    other = run.selected_on not in (None, run.measured_on)
    selected = f", its epochs selected on {run.selected_on} data" if other else ""
    return f"{run.measured_on} data{selected}"


def new_console() -> Console:
    """Return a rich console for standard output; plain text if that is not a terminal."""
    from rich.console import Console

    return Console(highlight=False)


def show_results(results: Results, console: Console | None = None) -> None:
    """Print the record of a run: mean accuracy matrix, metrics over seeds and a summary line."""
    console = console or new_console()
    name = results.name
    seeds = ", ".join(str(run.seed) for run in results.runs)
    parts = [f"{name['algo']} on {name['benchmark']}", name["backbone"], name["backend"]]
    parts.append(f"seed{'s' * (len(results.runs) != 1)} {seeds or 'none yet'}")
    _print_line(console, parts, style="bold")
    if not results.runs:
        _print_line(console, [results.status, *_relative(results.directory)], style="bold")
        return
    mean = ", mean over seeds" if len(results.runs) > 1 else ""
    _print_line(console, [f"\naccuracy (%) on {_data(results)}, by task{mean}"])
    console.print(accuracy_table(results.mean_matrix, console.width))
    summary = results.summary
    if len(results.runs) > 1:
        header = ["metric", "mean", "std", "95 % interval", "seeds"]
        rows = [[metric_label(key), *_spread(value)] for key, value in summary.items()]
    else:
        header = ["metric", ""]
        rows = [[metric_label(key), _percent(value["mean"])] for key, value in summary.items()]
    console.print(_rich_table(header, rows))
    show_verdict(results, console)
    show_headline(results, console)


def show_headline(results: Results, console: Console | None = None) -> None:
    """Print one line with the average accuracy of a run and its directory."""
    console = console or new_console()
    shown = {
        key: percent(value["mean"], half_width(value), unit=" %")
        for key, value in results.summary.items()
        if value["mean"] is not None
    }
    status = [] if results.status == "completed" else [results.status]
    parts = [*status, _headline(shown), *_relative(results.directory)]
    _print_line(console, [part for part in parts if part], style="bold")


def show_verdict(results: Results, console: Console | None = None) -> None:
    """Print the verdict of a reproduction, with published and measured numbers."""
    verdict = results.verdict
    if verdict is None:
        return
    console = console or new_console()
    rows = [
        [
            metric_label(name),
            percent(metric["expected"], metric["expected_std"]),
            percent(metric["mean"], metric["half_width"]),
            _difference(metric),
            percent(metric["band"]),
            metric["verdict"],
        ]
        for name, metric in verdict["metrics"].items()
    ]
    header = ["metric", "published", "measured", "difference", "band ±", "verdict"]
    console.print(_rich_table(header, rows))
    seeds = next(iter(verdict["metrics"].values()))["seeds"]
    meaning = MEANINGS[verdict["verdict"]]
    parts = [f"verdict: {verdict['verdict']}: {meaning}", f"{seeds} seed{'s' * (seeds != 1)}"]
    numbers = {metric["seeds_that_decide"] for metric in verdict["metrics"].values()} - {None}
    if "none" in numbers:
        parts.append("no number of seeds would decide")
    elif numbers:
        parts.append(f"{max(numbers)} seeds would decide, were they like these")
    if any(metric["deviation_of"] == "ours" for metric in verdict["metrics"].values()):
        parts.append("where no deviation was published, ours stands for it")
    parts += [f"{verdict['paper']}, {verdict['table']}", f"the number is {verdict['status']}"]
    if verdict["measured_on"] != "test":
        parts.append(f"measured on {verdict['measured_on']} data")
    if verdict["changed"]:
        parts.append(f"the protocol was changed: {' '.join(verdict['changed'])}")
    _print_line(console, parts, style="bold")


def _difference(metric: Mapping[str, Any]) -> str:
    """Return the difference, and below it half its interval, so that a line fits."""
    shown = percent(metric["difference"], signed=True, undefined="")
    half = metric["difference_half_width"]
    return shown if half is None else f"{shown}\n± {percent(half)}"


def accuracy_table(matrix: np.ndarray, width: int) -> Table:
    """Return the accuracy matrix as a table of percentages that fits into `width` characters.

    There is one row after each task and one column per task. The last column is the average over
    all tasks seen. If there are too many columns for `width`, or more than 26 rows, those in the
    middle are replaced by an ellipsis.

    Args:
        matrix: (T+1, T) float, fractions; row 0 = untrained, NaN = not measured.
        width: number of characters, at least 40 to be readable.
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
    return _rich_table(header, rows)


def _rich_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold",
    )
    for index, name in enumerate(header):
        # Only the first column, which has names, may wrap.
        table.add_column(name, justify="right" if index else "left", no_wrap=index > 0)
    for row in rows:
        table.add_row(*row)
    return table


def _elide(items: list[int], room: int) -> list[int | None]:
    """Return `items`; if there are more than `room`, replace those in the middle by one None."""
    if len(items) <= room:
        return list(items)
    first = (room - 1) // 2
    return [*items[:first], None, *items[len(items) - (room - 1 - first) :]]


def _print_line(console: Console, parts: Sequence[str], style: str = "") -> None:
    """Print one line without wrapping it, in ASCII if the encoding is not UTF."""
    line = " · ".join(parts)
    if not console.encoding.lower().startswith("utf"):
        line = line.replace("·", "-").replace("±", "+-")
    console.print(line, style=style, soft_wrap=True, markup=False)


def _headline(values: Mapping[str, str]) -> str:
    keys = ("average_accuracy", "average_forgetting")
    return ", ".join(f"{metric_label(key)} {values[key]}" for key in keys if key in values)


def _percent(value: float | None) -> str:
    return percent(value, unit=" %")


def _number(value: float) -> str:
    return "-" if np.isnan(value) else percent(value)


def _spread(value: Mapping[str, Any]) -> list[str]:
    if value["mean"] is None:
        return ["undefined", "", "", "0"]
    if value["std"] is None:
        return [_percent(value["mean"]), "", "", str(value["n"])]
    low, high = value["ci95"]
    interval = f"{percent(low)} to {percent(high)}"
    return [_percent(value["mean"]), percent(value["std"]), interval, str(value["n"])]


def _relative(directory: Path | None) -> list[str]:
    """Return [directory], relative to the working directory if it is inside; [] if it is None."""
    if directory is None:
        return []
    relative = os.path.relpath(directory)  # "." with hydra.job.chdir
    return [str(directory) if relative.startswith(".") else relative]

"""Every algorithm on Rotated and Split MNIST: search, measure, write docs/algorithms/README.md.

python bench/tables.py [--search] [--algorithms ewc,er] [--columns rotated_mnist]

Without --search the hyper-parameters of bench/chosen.json are used.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path

import yaml

from seqrun.benchmarks.base import evaluation_sizes
from seqrun.checks import ConfigError
from seqrun.cli import preflight
from seqrun.config import build as experiment
from seqrun.evaluation.metrics import run_metrics, summarise
from seqrun.files import write_atomically
from seqrun.training.divergence import TrainingDiverged

ROOT = Path(__file__).resolve().parents[1]
CHOSEN = ROOT / "bench" / "chosen.json"
MEASURED = ROOT / "bench" / "tables.json"
SEARCH_SEED, SEEDS = 100, (0, 1, 2)
QUIET = ["callbacks=[metrics]", "logger=[console]", "logger.console=null"]


def metrics(overrides: list[str], seed: int) -> dict[str, float | None]:
    """Run one experiment and return its metrics."""
    (job,) = preflight.check([*overrides, *QUIET], ROOT / "conf")
    algorithm = experiment.build(job.config, seed)
    algorithm.fit()
    progress = algorithm.progress
    sizes = evaluation_sizes(algorithm.benchmark)
    return run_metrics(progress.accuracy_matrix, progress.accuracy_matrix_task_aware, sizes)


def experiment_of(plan: dict, algorithm: str, column: str) -> list[str]:
    """Return the overrides of a cell of the table, without its hyper-parameters."""
    fixed = plan["fixed"].get(algorithm, [])
    return [f"algo={algorithm}", *plan["columns"][column], *plan["common"], *fixed]


def refusal(overrides: list[str]) -> str | None:
    """Return why the algorithm does not admit the benchmark, or None.

    Raises:
        ConfigError: the experiment is invalid for another reason.
    """
    try:
        preflight.check([*overrides, *QUIET], ROOT / "conf")
    except ConfigError as error:
        if not str(error).startswith("benchmark.scenario="):
            raise
        return str(error)
    return None


def best_setting(overrides: list[str], grid: dict[str, list]) -> dict[str, object]:
    """Return the setting of the grid with the best average accuracy on validation data."""
    scores = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        chosen = [f"{key}={value}" for key, value in setting.items()]
        held_out = ["benchmark.validation_fraction=0.2", "benchmark.samples_per_task=800"]
        try:
            score = metrics([*overrides, *chosen, *held_out], SEARCH_SEED)["average_accuracy"]
        except TrainingDiverged:
            continue
        scores.append((score, setting))
        sys.stderr.write(f"  {score:.3f} {setting}\n")
    return max(scores, key=lambda pair: pair[0])[1]


def load(path: Path) -> dict:
    """Return a JSON file's content, or {}."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def table(columns: list[str], measured: dict) -> str:
    """Return the Markdown table: average accuracy +- std / average forgetting, in percent."""
    lines = ["| algorithm | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for algorithm, cells in measured.items():
        shown = [cells.get(column, "not run") for column in columns]
        lines.append(f"| [{algorithm}]({algorithm}.md) | " + " | ".join(map(cell, shown)) + " |")
    return "\n".join(lines)


def cell(measured: dict | str) -> str:
    """Return one cell of the table."""
    if isinstance(measured, str):
        return measured
    accuracy, forgetting = measured["average_accuracy"], measured["average_forgetting"]
    text = f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f}"
    if forgetting and forgetting["mean"] is not None:
        text += f" / {100 * forgetting['mean']:.1f}"
    return text


def main() -> None:
    """Search if asked to, measure, and write the page."""
    plan = yaml.safe_load((ROOT / "bench" / "tables.yaml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--search", action="store_true", help="search hyper-parameters first")
    parser.add_argument("--algorithms", default=",".join(plan["search"]))
    parser.add_argument("--columns", default=",".join(plan["columns"]))
    arguments = parser.parse_args()
    chosen, measured = load(CHOSEN), load(MEASURED)
    for algorithm, column in itertools.product(
        arguments.algorithms.split(","), arguments.columns.split(",")
    ):
        sys.stderr.write(f"{algorithm} on {column}\n")
        overrides = experiment_of(plan, algorithm, column)
        why = refusal(overrides)
        if why is not None:
            sys.stderr.write(f"  refused: {why}\n")
            measured.setdefault(algorithm, {})[column] = "not admitted"
            continue
        if arguments.search:
            setting = best_setting(overrides, plan["search"][algorithm])
            chosen.setdefault(algorithm, {})[column] = setting
            write_atomically(CHOSEN, json.dumps(chosen, indent=1, sort_keys=True) + "\n")
        setting = chosen[algorithm][column]
        told = [f"{key}={value}" for key, value in setting.items()]
        runs = [metrics([*overrides, *told], seed) for seed in SEEDS]
        measured.setdefault(algorithm, {})[column] = summarise(runs)
        shown = statistics.mean(run["average_accuracy"] for run in runs)
        sys.stderr.write(f"  test {shown:.3f} with {setting}\n")
        write_atomically(MEASURED, json.dumps(measured, indent=1) + "\n")
    measured = {name: measured[name] for name in plan["search"] if name in measured}
    path = ROOT / "docs" / "algorithms" / "README.md"
    page = path.read_text(encoding="utf-8")
    start, end = "<!-- table -->\n", "<!-- end of table -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    body = table(list(plan["columns"]), measured)
    write_atomically(path, f"{before}{start}{body}\n{end}{after}")


if __name__ == "__main__":
    main()

"""ConsoleLogger: the printed output."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from seqrun.evaluation.metrics import compute_metrics
from seqrun.loggers import ConsoleLogger, RunInfo
from seqrun.loggers.console import show_results
from seqrun.records.results import Results, RunRecord

NAME = {"algo": "ewc", "benchmark": "rotated_digits", "backbone": "mlp", "backend": "jax"}


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("seqrun.loggers.console.time.perf_counter", iter(np.arange(1e3)).__next__)


def matrix_of(tasks: int) -> np.ndarray:
    """R[i, j] = 0.9 - 0.01 (i - j) where measured."""
    rows, columns = np.indices((tasks + 1, tasks))
    matrix = np.where(columns < rows, 0.9 - 0.01 * (rows - 1 - columns), np.nan)
    matrix[0] = 0.1
    return matrix


def play(tasks: int, status: str = "completed", stop: int | None = None, **info) -> None:
    """Log a whole run in the way MetricCallback does."""
    matrix = matrix_of(tasks)
    logger = ConsoleLogger()
    logger.open(RunInfo(name=NAME, seed=3, num_tasks=tasks, **info))
    for task in range(tasks + 1 if stop is None else stop + 1):
        so_far = compute_metrics(matrix[: task + 1, :task]) if task else {}
        values = {f"accuracy/task_{task}": matrix[task, task - 1]} if task else {}
        values.update({k: v for k, v in so_far.items() if v is not None})
        logger.log(values, step=10 * task, epoch=2, task=task)
        logger.log_matrix("accuracy_matrix", matrix, step=10 * task, task=task)
    if status == "completed":
        logger.log_summary(compute_metrics(matrix))
    logger.close(status)


def test_a_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    play(3, config={"device": "cpu"}, directory=tmp_path / "runs" / "x", measured_on="validation")
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert printed == [
        "ewc on rotated_digits · mlp · jax · seed 3 · 3 tasks · device cpu",
        "task 1/3 · accuracy  90.0 % · average  90.0 % · 1.0 s",
        "task 2/3 · accuracy  90.0 % · average  89.5 % · forgetting   1.0 % · 2.0 s",
        "task 3/3 · accuracy  90.0 % · average  89.0 % · forgetting   1.5 % · 3.0 s",
        "accuracy (%) on validation data, by task",
        "after         1     2     3  average",
        "────────────────────────────────────",
        "untrained  10.0  10.0  10.0",
        "task 1     90.0     -     -     90.0",
        "task 2     89.0  90.0     -     89.5",
        "task 3     88.0  89.0  90.0     89.0",
        "metric",
        "───────────────────────────────────────",
        "average accuracy                 89.0 %",
        "average forgetting                1.5 %",
        "backward transfer                -1.5 %",
        "forward transfer              undefined",
        "learning accuracy                90.0 %",
        "average incremental accuracy     89.5 %",
        "average accuracy 89.0 %, average forgetting 1.5 % · 4.0 s · runs/x",
    ]


def test_plain_text_when_not_a_terminal(capsys):
    play(2)
    assert "\x1b" not in capsys.readouterr().out


def test_one_task(capsys):
    play(1)
    out = capsys.readouterr().out
    assert "· 1 task\n" in out
    assert re.search(r"average forgetting +undefined", out)
    assert out.splitlines()[-1] == "average accuracy 90.0 % · 2.0 s"


@pytest.mark.parametrize("tasks", [10, 20, 100])
def test_many_tasks_fit_into_eighty_columns(capsys, tasks):
    play(tasks)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    header = next(line.split() for line in out.splitlines() if line.startswith(" after"))
    last = next(line for line in out.splitlines() if line.startswith(f" task {tasks} "))
    assert header[1] == "1" and header[-2:] == [str(tasks), "average"]
    mean = matrix_of(tasks)[tasks].mean()  # over all tasks, not only those shown
    assert last.split()[-1] == f"{100 * mean:.1f}"
    if tasks > 10:
        assert "..." in header
        assert len(re.findall("^ task|^ untrained", out, re.M)) <= 26


def test_epochs_are_named_when_they_are_evaluated(capsys):
    play(2, config={"training": {"evaluate_every": "epoch"}})
    assert "task 1/2 · epoch 2 · accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_did_not_end_says_where(capsys, status, tmp_path):
    """After Ctrl-C the command's own last line does: it also says how to go on."""
    play(3, status, stop=1, directory=tmp_path)
    out = capsys.readouterr().out
    says = out.splitlines()[-1] == f"{status} in task 2/3 · 2.0 s · {tmp_path}"
    assert says is (status == "failed")
    assert "average forgetting" not in out


def test_closing_what_was_never_opened_says_nothing(capsys):
    ConsoleLogger().close("failed")
    assert capsys.readouterr().out == ""


def test_an_output_without_unicode(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    play(20)
    assert b"average accuracy 80.5 %, average forgetting 10.0 % - " in raw.getvalue()


def record(directory: Path, finals: dict[int, float]) -> Results:
    results = Results.start(
        directory, name=NAME, config_hash="x", measured_on="test", seeds=list(finals)
    )
    for seed, final in finals.items():
        matrix = np.array([[0.1, 0.1], [0.9, 0.2], [0.7, final]])
        results.update(RunRecord(seed=seed, accuracy_matrix=matrix))
    results.finish("completed")
    return results


def test_results_of_several_seeds(capsys, tmp_path):
    show_results(record(tmp_path, {0: 0.7, 1: 0.8, 2: 0.9}))
    out = capsys.readouterr().out
    assert "ewc on rotated_digits · mlp · jax · seeds 0, 1, 2" in out
    assert re.search(r"^ task 2     70\.0  80\.0     75\.0", out, re.M)
    # average accuracies 70, 75, 80: std 5, half width 4.302653 * 5 / sqrt(3) = 12.42
    assert re.search(r"average accuracy +75\.0 % +5\.0 +62\.6 to 87\.4 +3", out)
    assert re.search(r"average forgetting +20\.0 % +0\.0 +20\.0 to 20\.0 +3", out)
    assert out.splitlines()[-1].startswith(
        "average accuracy 75.0 ± 12.4 %, average forgetting 20.0 ± 0.0 % · "
    )


def test_results_of_one_seed(capsys, tmp_path):
    show_results(record(tmp_path, {5: 0.9}))
    out = capsys.readouterr().out
    assert "· seed 5\n" in out and "mean over seeds" not in out
    assert out.splitlines()[-1].startswith("average accuracy 80.0 %, average forgetting 20.0 %")


def test_results_without_a_run(capsys, tmp_path):
    show_results(record(tmp_path, {}))
    assert "seeds none yet" in capsys.readouterr().out

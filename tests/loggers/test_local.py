"""LocalLogger: the content of its files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from seqrun.checks import ConfigError
from seqrun.files import matrix_from_csv
from seqrun.loggers import LocalLogger, RunInfo

NAME = {"algo": "ewc", "benchmark": "rotated_digits", "backbone": "mlp", "backend": "jax"}
MATRIX = np.array([[0.1, 0.2], [0.9, np.nan], [0.5, 0.6]])


def run_in(directory: Path | None, seed: int = 0) -> RunInfo:
    return RunInfo(name=NAME, seed=seed, num_tasks=2, directory=directory)


def opened(directory: Path, **options) -> LocalLogger:
    logger = LocalLogger(**options)
    logger.open(run_in(directory))
    return logger


def lines(directory: Path) -> list[str]:
    return (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_lines(tmp_path):
    logger = opened(tmp_path, figures=False)
    losses = np.array([0.5, 0.1], np.float32)
    logger.log_steps("loss", losses, first_step=10, epoch=1, task=2)
    logger.log({"a": 0.25, "b": float("nan")}, step=12, epoch=1, task=2)
    logger.close("completed")
    assert lines(tmp_path) == [
        '{"step": 10, "epoch": 1, "task": 2, "loss": 0.5}',
        '{"step": 11, "epoch": 1, "task": 2, "loss": 0.100000001}',
        '{"step": 12, "epoch": 1, "task": 2, "a": 0.25, "b": null}',
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_come_back_to_the_bit(tmp_path, dtype):
    random = np.random.default_rng(0)
    values = np.exp(random.normal(scale=20, size=2000)).astype(dtype)
    logger = opened(tmp_path, figures=False)
    logger.log_steps("loss", values, first_step=0, epoch=1, task=1)
    logger.close("completed")
    back = np.array([json.loads(line)["loss"] for line in lines(tmp_path)], dtype)
    np.testing.assert_array_equal(back, values)


def test_a_step_that_is_not_finite_is_null(tmp_path):
    logger = opened(tmp_path, figures=False)
    values = np.array([1.0, np.nan, np.inf], np.float32)
    logger.log_steps("loss", values, first_step=0, epoch=1, task=1)
    logger.close("failed")
    assert [json.loads(line)["loss"] for line in lines(tmp_path)] == [1.0, None, None]


def test_a_chunk_is_one_write(tmp_path):
    logger = opened(tmp_path, figures=False)

    class Counting:
        writes = 0

        def write(self, text):
            self.writes += 1

    logger._file = Counting()
    logger.log_steps("loss", np.ones(1000, np.float32), first_step=0, epoch=1, task=1)
    assert logger._file.writes == 1


def test_lines_reach_the_file_at_each_validation(tmp_path):
    logger = opened(tmp_path, figures=False)
    logger.log({"a": 1.0}, step=0, epoch=1, task=1)
    logger.log_matrix("accuracy_matrix", MATRIX, step=1, task=1)
    assert len(lines(tmp_path)) == 1
    matrix = matrix_from_csv((tmp_path / "accuracy_matrix.csv").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(matrix, MATRIX)
    logger.close("interrupted")


def test_a_new_run_starts_the_file_anew(tmp_path):
    for value in (1.0, 2.0):
        logger = opened(tmp_path, figures=False)
        logger.log({"a": value}, step=0, epoch=1, task=1)
        logger.close("completed")
    assert [json.loads(line)["a"] for line in lines(tmp_path)] == [2.0]


def test_a_resumed_run_goes_on_where_the_checkpoint_was(tmp_path):
    first = opened(tmp_path, figures=False)
    first.log({"a": 1.0}, step=5, epoch=1, task=1)
    state = first.export_state()
    first.log({"b": 2.0}, step=5, epoch=1, task=1)  # the same step as before the checkpoint
    first.close("interrupted")
    second = LocalLogger(figures=False)
    second.open(run_in(tmp_path))
    second.import_state(state)
    second.log({"c": 3.0}, step=5, epoch=1, task=1)
    second.close("completed")
    assert [set(json.loads(line)) - {"step", "epoch", "task"} for line in lines(tmp_path)] == [
        {"a"},
        {"c"},
    ]


def test_position_counts_bytes_on_disk(tmp_path):
    logger = opened(tmp_path, figures=False)
    logger.log({"é": 1.0}, step=0, epoch=1, task=1)
    kept = logger.export_state()
    assert kept == {"bytes": (tmp_path / "metrics.jsonl").stat().st_size} and kept["bytes"] > 0
    logger.close("completed")


@pytest.mark.ci
def test_figures_when_a_run_completes(tmp_path):
    logger = opened(tmp_path)
    logger.log_matrix("accuracy_matrix", MATRIX, step=1, task=2)
    logger.log_matrix("accuracy_matrix_task_aware", MATRIX, step=1, task=2)
    logger.close("completed")
    figures = sorted(p.relative_to(tmp_path / "figures") for p in tmp_path.rglob("*.png"))
    assert [str(p) for p in figures] == [
        "accuracy_matrix.png",
        "accuracy_matrix_task_aware/accuracy_matrix.png",
        "accuracy_matrix_task_aware/accuracy_per_task.png",
        "accuracy_per_task.png",
    ]


@pytest.mark.parametrize(
    ("options", "status"), [({"figures": False}, "completed"), ({}, "interrupted"), ({}, "failed")]
)
def test_no_figures_otherwise(tmp_path, options, status):
    logger = opened(tmp_path, **options)
    logger.log_matrix("accuracy_matrix", MATRIX, step=1, task=2)
    logger.close(status)
    assert not (tmp_path / "figures").exists()


def test_a_directory_of_its_own(tmp_path):
    logger = LocalLogger(directory=tmp_path / "own", figures=False)
    logger.open(run_in(tmp_path / "run"))
    logger.log({"a": 1.0}, step=0, epoch=1, task=1)
    logger.close("completed")
    assert os.listdir(tmp_path) == ["own"]


def test_the_directory_of_another_run_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="logger.local.directory=.*: holds another run"):
        LocalLogger(directory=tmp_path).check()


def test_several_seeds_do_not_mix_in_one_directory(tmp_path):
    for seed in (0, 1):
        logger = LocalLogger(directory=tmp_path / "own", figures=False)
        logger.open(run_in(tmp_path / "run" / "seeds" / str(seed), seed))
        logger.log({"seed": float(seed)}, step=0, epoch=1, task=1)
        logger.close("completed")
    for seed in (0, 1):
        (line,) = lines(tmp_path / "own" / "seeds" / str(seed))
        assert json.loads(line)["seed"] == seed


def test_bad_arguments():
    with pytest.raises(ConfigError, match="figures='no': must be true or false"):
        LocalLogger(figures="no")
    with pytest.raises(ConfigError, match="directory"):
        LocalLogger().open(run_in(None))


def test_closing_what_was_never_opened_is_no_error(tmp_path):
    LocalLogger(directory=tmp_path).close("failed")
    assert os.listdir(tmp_path) == []

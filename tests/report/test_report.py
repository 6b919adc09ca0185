"""A report finds, groups, counts and writes runs; the numbers are worked out by hand."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from report.runs import record

from seqrun.checks import ConfigError
from seqrun.config import hash as config
from seqrun.files import write_json
from seqrun.records.locks import locked
from seqrun.report import collect, find, summarise_directory, write_report, write_summary
from seqrun.report.differences import labels, varying_keys
from seqrun.report.pairing import compare_pairs, streams
from seqrun.report.records import NOT_COMPARED
from seqrun.report.tables import matrix_table, pairs_table, results_table, to_latex, to_markdown

T3 = 4.302652729911275  # t quantile 0.975 with 2 degrees of freedom
SIX_HEADINGS = 6


def gather(path):
    return collect(find([path]))


def csv_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---- grouping


def test_runs_that_differ_only_in_the_seed_are_one_experiment(tmp_path):
    record(tmp_path / "a", {0: 0.7})
    record(tmp_path / "b", {1: 0.8}, keys={"benchmark": {"data_dir": "/elsewhere"}})
    record(tmp_path / "c" / "d", {2: 0.9, 3: 0.5}, keys={"logger": {"local": {"_target_": "x"}}})
    watch = {"checkpoint": {"_target_": "seqrun.callbacks.CheckpointCallback", "every_steps": 5}}
    record(tmp_path / "e", {4: 0.6}, keys={"callbacks": {**watch, "progress": None}})
    (experiment,) = gather(tmp_path).experiments
    assert list(experiment.runs) == [0, 1, 2, 3, 4]
    assert experiment.directories[3] == tmp_path / "c" / "d"


@pytest.mark.parametrize(
    "other",
    [
        {"keys": {"optimizer": {"lr": 0.2}}},
        {"keys": {"benchmark": {"num_tasks": 3}}},
        {"keys": {"callbacks": {"own": {"_target_": "mine.Own"}}}},
        {"backend": "jax"},
        {"algo": "er"},
    ],
)
def test_another_key_is_another_experiment(tmp_path, other):
    record(tmp_path / "a", {0: 0.7})
    record(tmp_path / "b", {1: 0.8}, **other)
    assert len(gather(tmp_path).experiments) == 2


def test_experiments_are_told_apart_by_their_config_hash():
    assert set(NOT_COMPARED) == {"seed", *config.NOT_HASHED}


def test_of_two_runs_of_one_seed_the_newer_counts(tmp_path):
    record(tmp_path / "b", {0: 0.7})
    time.sleep(0.02)
    record(tmp_path / "a", {0: 0.9})
    collection = gather(tmp_path)
    (experiment,) = collection.experiments
    assert experiment.runs[0].accuracy_matrix[2, 1] == 0.9
    assert collection.replaced == [tmp_path / "b"] and collection.num_runs == 1


def test_a_run_without_a_configuration_stands_alone(tmp_path):
    record(tmp_path / "a", {0: 0.7}, config=False)
    record(tmp_path / "b", {1: 0.7}, config=False)
    assert len(gather(tmp_path).experiments) == 2


def test_the_same_directory_given_twice_counts_once(tmp_path):
    record(tmp_path / "a", {0: 0.7})
    assert find([tmp_path, tmp_path / "a"]) == [tmp_path / "a"]


# ---- columns


def test_keys_that_vary_are_columns(tmp_path):
    record(tmp_path / "a", {0: 0.7}, keys={"algo": {"ewc_lambda": 9.0}})
    record(tmp_path / "b", {0: 0.7}, keys={"algo": {"ewc_lambda": 10.0}})
    record(tmp_path / "c", {0: 0.7}, algo="er", keys={"algo": {"memory_size": 5}})
    experiments = gather(tmp_path).experiments
    assert varying_keys(experiments) == ["algo.ewc_lambda"]  # not the memory, only er's
    assert list(labels(experiments).values()) == ["er", "ewc, ewc_lambda=9", "ewc, ewc_lambda=10"]
    table = results_table(experiments)
    assert table.header[:3] == ["algo", "ewc_lambda", "seeds"]
    assert [row[1].text for row in table.rows] == ["–", "9", "10"]


def test_a_key_of_only_one_of_two_experiments_of_equal_names_is_a_column(tmp_path):
    record(tmp_path / "a", {0: 0.7})
    record(tmp_path / "b", {0: 0.7}, keys={"optimizer": {"nesterov": True}})
    assert list(labels(gather(tmp_path).experiments).values()) == ["ewc", "ewc, nesterov=true"]


# ---- numbers


@pytest.mark.ci
def test_mean_and_interval_by_hand(tmp_path):
    for seed, final in enumerate((0.7, 0.8, 0.9)):
        record(tmp_path / str(seed), {seed: final})
    write_summary(find([tmp_path]), tmp_path)
    (row,) = csv_rows(tmp_path / "summary.csv")
    half = T3 * 0.05 / math.sqrt(3)  # average accuracies 0.6, 0.65, 0.7
    assert float(row["average_accuracy_mean"]) == pytest.approx(0.65)
    assert float(row["average_accuracy_std"]) == pytest.approx(0.05)
    assert float(row["average_accuracy_ci95_low"]) == pytest.approx(0.65 - half)
    assert float(row["average_accuracy_ci95_high"]) == pytest.approx(0.65 + half)
    assert row["average_accuracy_n"] == "3"
    assert row["forward_transfer_mean"] == "" and row["forward_transfer_n"] == "0"
    assert row["completed_seeds"] == "0 1 2" and row["directories"] == "0;1;2"
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| ewc | 3 | 65.0 ± 12.4 | 40.0 ± 0.0 | -40.0 ± 0.0 | – |" in page


def test_paired_differences_by_hand(tmp_path):
    for seed, (one, other) in enumerate([(0.70, 0.60), (0.90, 0.84), (0.80, 0.72), (0.5, None)]):
        record(tmp_path / f"a{seed}", {seed: one}, keys={"optimizer": {"lr": 0.5}})
        if other is not None:
            record(tmp_path / f"b{seed}", {seed: other}, algo="naive")
    (group,) = streams(gather(tmp_path).experiments)
    (pair,) = compare_pairs(group)
    assert [e.names["algo"] for e in group] == ["ewc", "naive"]
    assert pair.seeds == (0, 1, 2)  # seed 3 has no partner
    # differences of average accuracy 0.05, 0.03, 0.04: mean 0.04, std 0.01
    found = pair.differences["average_accuracy"]
    half = T3 * 0.01 / math.sqrt(3)
    assert found["mean"] == pytest.approx(0.04) and found["n"] == 3
    assert found["ci95"] == pytest.approx([0.04 - half, 0.04 + half])
    assert pair.config == "lr: 0.5 | 0.1"
    (row,) = pairs_table([pair], group).rows
    assert [cell.text for cell in row] == [
        "ewc, lr=0.5",
        "naive, lr=0.1",
        "3",
        "+4.0 ± 2.5",
        "+0.0 ± 0.0",
        "lr: 0.5 | 0.1",
    ]
    rows = matrix_table([pair], group).rows
    assert [[cell.text for cell in row[1:]] for row in rows] == [
        ["–", "+4.0 ± 2.5"],
        ["-4.0 ± 2.5", "–"],
    ]


def test_pairs_stay_within_one_stream(tmp_path):
    record(tmp_path / "a", {0: 0.7, 1: 0.8})
    record(tmp_path / "b", {0: 0.7, 1: 0.8}, backend="jax")
    record(tmp_path / "c", {0: 0.7, 1: 0.8}, keys={"benchmark": {"per_task_rotation": 5}})
    record(tmp_path / "d", {0: 0.6, 1: 0.6}, keys={"benchmark": {"batch_size": 64}})
    record(tmp_path / "e", {7: 0.6}, algo="er")  # no seed in common
    groups = streams(gather(tmp_path).experiments)
    pairs = [pair for group in groups for pair in compare_pairs(group)]
    assert [pair.config for pair in pairs] == ["batch_size: 10 | 64"]


@pytest.mark.ci
def test_many_settings_are_compared_with_the_best(tmp_path):
    for n in range(13):
        record(tmp_path / str(n), {0: 0.3 + 0.01 * n}, keys={"optimizer": {"lr": n + 1.5}})
    (group,) = streams(gather(tmp_path).experiments)
    assert len(compare_pairs(group)) == 12
    assert {pair.first.config["optimizer.lr"] for pair in compare_pairs(group)} == {13.5}


# ---- odd input


def test_no_runs(tmp_path):
    with pytest.raises(ConfigError, match="no results.json at or below"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_summary([], tmp_path / "s")
    assert "0 completed runs of 0 experiments." in (tmp_path / "s" / "summary.md").read_text(
        encoding="utf-8"
    )
    assert csv_rows(tmp_path / "s" / "summary.csv") == []


@pytest.mark.ci
def test_one_run_of_one_task(tmp_path):
    record(tmp_path / "a", {0: np.array([[0.1], [0.8]])})
    write_report([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "| ewc | 1 | 80.0 | – | – | – | 80.0 | 80.0 |" in page  # forgetting undefined, not 0
    assert "Paired" not in page
    assert "80.0" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.ci
def test_a_matrix_with_nothing_measured(tmp_path):
    record(tmp_path / "a", {0: np.full((3, 2), np.nan)})
    record(tmp_path / "b", {0: 0.5}, algo="er")
    write_report([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "| ewc | 1 | – | – | – | – | – | – |" in page


@pytest.mark.ci
def test_failed_and_interrupted_runs_are_listed(tmp_path):
    record(tmp_path / "good", {0: 0.5})
    record(tmp_path / "bad", {}, seeds=[1], status="failed", error=ValueError("loss | NaN\nat 3"))
    record(tmp_path / "half", {2: 0.6}, seeds=[2, 3], status="running")
    live = record(tmp_path / "live", {}, seeds=[4], status="running")
    with locked(live):
        write_report([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "2 completed runs of 1 experiment, 1 failed, 1 interrupted, 1 running." in page
    assert r"| failed | 1 | ValueError: loss \| NaN at 3 | ../bad |" in page
    assert "| interrupted | 3 |  | ../half |" in page
    assert "| running | 4 |  | ../live |" in page
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "ValueError: loss | NaN at 3" in html


@pytest.mark.ci
def test_unreadable_records_are_named_and_the_rest_reported(tmp_path):
    record(tmp_path / "good", {0: 0.5})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "results.json").write_text('{"schema": 1', encoding="utf-8")
    write_json(tmp_path / "old" / "results.json", {"schema": 0})
    command = [sys.executable, "-m", "seqrun.report", "good", "torn", "old"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 1
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] == [
        ["skipped", " old/results.json"],
        ["skipped", " torn/results.json"],
    ]
    made = {p.name for p in (tmp_path / "report").iterdir()}
    assert made == {"summary.csv", "summary.md", "summary.tex", "index.html", "figures"}
    assert "torn/results.json" in (tmp_path / "report" / "summary.md").read_text(encoding="utf-8")


@pytest.mark.ci
@pytest.mark.parametrize(
    "directories, message",
    [([], "required: DIR"), (["nowhere"], "error: nowhere: must be a directory")],
)
def test_a_wrong_command(tmp_path, directories, message):
    command = [sys.executable, "-m", "seqrun.report", *directories]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_directory_is_not_overwritten(tmp_path):
    record(tmp_path / "a", {0: 0.5})
    with pytest.raises(ConfigError, match="--out="):
        write_report([tmp_path], tmp_path / "a")


# ---- forms


@pytest.mark.ci
def test_the_same_runs_give_the_same_bytes(tmp_path):
    for place in ("one", "two"):
        record(tmp_path / place / "a", {0: 0.5, 1: 0.6})
        record(tmp_path / place / "b", {0: 0.5, 1: 0.4}, algo="naive")
        summarise_directory(tmp_path / place)
    names = ["summary.csv", "summary.md"]
    names += [f"figures/{path.name}" for path in (tmp_path / "one" / "figures").iterdir()]
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_special_characters_in_latex_and_markdown(tmp_path):
    record(tmp_path / "a", {0: 0.5, 1: 0.7}, algo=r"a_b%{$x}\|~*")
    table = results_table(gather(tmp_path).experiments)
    assert r"a\_b%{$x}\\\|~\*" in to_markdown(table)
    latex = to_latex(table)
    assert r"a\_b\%\{\$x\}\textbackslash{}\textbar{}\textasciitilde{}*" in latex
    assert r"$55.0 \pm 63.5$" in latex  # 0.5, 0.6: t(1 df) = 12.706, half width 0.635
    head, *body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert head.count("&") == body[0].count("&") == 1 + SIX_HEADINGS

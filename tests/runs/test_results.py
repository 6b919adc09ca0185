"""results.json: its schema, its states during a run, and what is refused when it is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from seqrun.callbacks import RecordCallback
from seqrun.files import matrix_from_csv
from seqrun.records import results as results_module
from seqrun.records.progress import Progress
from seqrun.records.results import RecordError, Results, RunRecord, environment, peak_rss_bytes

NAME = {"algo": "ewc", "benchmark": "rotated_digits", "backbone": "mlp", "backend": "torch"}


def start(directory: Path, seeds=(0,)) -> Results:
    return Results.start(directory, name=NAME, config_hash="abc", measured_on="test", seeds=seeds)


def run(seed: int = 0, final: float = 0.6, aware: bool = False) -> RunRecord:
    matrix = np.array([[0.1, 0.2], [0.9, np.nan], [0.5, final]])
    return RunRecord(
        seed=seed,
        accuracy_matrix=matrix,
        accuracy_matrix_task_aware=matrix if aware else None,
        test_sizes=[100, 300],
        train_loss={"final": 0.25, "per_task": [0.5, 0.25]},
        timing={"train_seconds": 2.0, "steps": 10, "steps_per_second": 5.0},
        cost={"samples_seen": 100, "memory_bytes": 0},
        execution={"strategy": "sequential", "num_threads": 1},
        device="cpu",
    )


def read_json(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def test_the_documented_keys(tmp_path):
    results = start(tmp_path)
    results.update(run())
    results.finish("completed")
    record = read_json(tmp_path)
    assert record.keys() >= {
        "schema",
        "status",
        "name",
        "config_hash",
        "measured_on",
        "verdict",
        "error",
        "execution",
        "runs",
        "summary",
        "environment",
    }
    assert record["schema"] == 1
    assert record["status"] == "completed"
    assert record["name"] == NAME
    assert record["verdict"] is None and record["error"] is None
    assert record["execution"] == {"strategy": "sequential", "num_threads": 1}
    (entry,) = record["runs"]
    assert entry["seed"] == 0
    assert entry["accuracy_matrix"] == [[0.1, 0.2], [0.9, None], [0.5, 0.6]]
    assert entry["accuracy_matrix_task_aware"] is None
    assert entry["metrics"]["average_accuracy"] == pytest.approx(0.55)
    assert entry["metrics"]["average_forgetting"] == pytest.approx(0.4)
    assert entry["metrics"]["forward_transfer"] is None  # R[1, 2] was not measured
    pooled = (0.5 * 100 + 0.6 * 300) / 400
    aia = entry["metrics"]["average_incremental_accuracy"]
    assert aia == pytest.approx((0.9 + pooled) / 2)
    assert entry["train_loss"] == {"final": 0.25, "per_task": [0.5, 0.25]}
    summary = record["summary"]["average_accuracy"]
    assert summary == {"mean": pytest.approx(0.55), "std": None, "ci95": None, "n": 1}
    assert record["environment"].keys() >= {
        "python",
        "torch",
        "jax",
        "numpy",
        "seqrun",
        "git_commit",
        "device",
        "host_cpus",
    }
    assert record["environment"]["device"] == "cpu"
    assert record["environment"]["numpy"] == np.__version__


def test_states_of_a_run(tmp_path):
    directory = tmp_path / "run"
    results = start(directory)
    assert (read_json(directory)["status"], read_json(directory)["runs"]) == ("running", [])
    assert not (directory / "accuracy_matrix.csv").exists()
    results.update(run(final=np.nan))
    assert read_json(directory)["runs"][0]["metrics"]["average_accuracy"] is None
    results.update(run(final=0.7))
    assert len(read_json(directory)["runs"]) == 1
    matrix = matrix_from_csv((directory / "accuracy_matrix.csv").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(matrix, run(final=0.7).accuracy_matrix)
    try:
        raise RuntimeError("the loss is nan")
    except RuntimeError as error:
        results.finish("failed", error=error)
    record = read_json(directory)
    assert record["status"] == "failed"
    assert record["error"]["type"] == "RuntimeError"
    assert record["error"]["message"] == "the loss is nan"
    assert "test_results.py" in record["error"]["traceback"]
    assert sorted(os.listdir(directory)) == ["accuracy_matrix.csv", "results.json"]


def test_a_failed_run_that_continues_has_no_error(tmp_path):
    """Neither while it runs nor in the file; versions are those of the process that continues."""
    results = start(tmp_path)
    results.environment = {**results.environment, "python": "3.1", "device": "cuda"}
    results.finish("failed", error=ValueError("full"))
    again = Results.read(tmp_path)
    assert again.error is not None and again.error["message"] == "full"
    again.reopen()
    for found in (again, Results.read(tmp_path)):
        assert (found.status, found.error) == ("running", None)
        assert found.environment["python"] != "3.1" and found.environment["device"] == "cuda"


def test_reading_gives_the_same_record_back(tmp_path):
    results = start(tmp_path, seeds=[3, 1])
    results.update(run(1, aware=True))
    results.update(run(3, aware=True))
    results.finish("completed", verdict={"verdict": "reproduced"})
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    again = Results.read(tmp_path)
    again.write()
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == text
    assert [r.seed for r in again.runs] == [3, 1]
    assert again.runs[0].metrics["average_accuracy_task_aware"] == pytest.approx(0.55)
    assert np.isnan(again.runs[0].accuracy_matrix[1, 1])
    again.reopen()
    assert read_json(tmp_path)["status"] == "running"
    assert read_json(tmp_path)["environment"]["device"] == "cpu"


def test_several_seeds_aggregate_at_the_top(tmp_path):
    results = start(tmp_path, seeds=[0, 1, 2])
    for seed, final in ((2, 0.9), (0, 0.6), (1, 0.7)):
        results.update(run(seed, final))
    results.finish("completed")
    record = read_json(tmp_path)
    assert [entry["seed"] for entry in record["runs"]] == [0, 1, 2]  # no matter which ended first
    summary = record["summary"]["average_accuracy"]
    values = np.array([0.55, 0.6, 0.7])
    assert summary["mean"] == pytest.approx(values.mean())
    assert summary["std"] == pytest.approx(values.std(ddof=1))
    assert summary["n"] == 3
    top = matrix_from_csv((tmp_path / "accuracy_matrix.csv").read_text(encoding="utf-8"))
    np.testing.assert_allclose(top[2], [0.5, 2.2 / 3])
    for seed, final in ((0, 0.6), (1, 0.7), (2, 0.9)):
        text = (tmp_path / "seeds" / str(seed) / "accuracy_matrix.csv").read_text(encoding="utf-8")
        np.testing.assert_array_equal(matrix_from_csv(text)[2], [0.5, final])
    assert results.seed_directory(1) == tmp_path / "seeds" / "1"


def test_the_files_of_one_seed_are_at_the_top(tmp_path):
    results = start(tmp_path, seeds=[7])
    results.update(run(7))
    assert results.seed_directory(7) == tmp_path
    assert not (tmp_path / "seeds").exists()


def test_a_write_that_fails_leaves_the_last_record(tmp_path, monkeypatch):
    results = start(tmp_path)
    results.update(run())
    before = read_json(tmp_path)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("seqrun.files.os.replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        results.finish("completed")
    assert read_json(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["accuracy_matrix.csv", "results.json"]


def set_key(*path_and_value):
    *path, last, value = path_and_value

    def change(record):
        for key in path:
            record = record[key]
        record[last] = value

    return change


def drop_key(key):
    return lambda record: record.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_key("schema", 2), "schema=2: must be one of 1"),
        (set_key("status", "done"), "status='done': must be one of running, completed"),
        (set_key("measured_on", "train"), "measured_on='train'"),
        (drop_key("config_hash"), "missing required field `config_hash`"),
        (drop_key("environment"), "missing required field `environment`"),
        (set_key("name", {"algo": "ewc"}), r"missing required field `benchmark` - at `\$.name`"),
        (set_key("runs", {}), r"Expected `array`, got `object` - at `\$.runs`"),
        (set_key("runs", 0, "seed", "0"), r"runs\[0\].seed"),
        (set_key("runs", 0, "metrics", None), r"runs\[0\].metrics"),
        (set_key("runs", 0, "test_sizes", [1]), r"test_sizes=\[1\]: .* `\$.runs\[0\]`"),
        (set_key("runs", 0, "accuracy_matrix", [[0.1, 0.2]]), r"\(T\+1\) x T"),
        (set_key("runs", 0, "accuracy_matrix", [[0.1], [0.2, 0.3]]), "rows of numbers"),
        (set_key("runs", 0, "accuracy_matrix", [[10.0], [98.0]]), "fractions in"),
        (lambda record: record["runs"].append(record["runs"][0]), "a seed occurs twice"),
        (lambda record: record["runs"][0].pop("timing"), r"`timing` - at `\$.runs\[0\]`"),
    ],
)
def test_other_content_than_the_schemas_is_refused(tmp_path, change, message):
    start(tmp_path).update(run())
    record = read_json(tmp_path)
    change(record)
    (tmp_path / "results.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(RecordError, match=message) as caught:
        Results.read(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null"])
def test_no_record_at_all(tmp_path, text):
    if text is not None:
        (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=r"results\.json"):
        Results.read(tmp_path)


@pytest.fixture
def progress():
    return Progress(
        accuracy_matrix=np.array([[0.1, 0.2], [0.9, 0.3], [0.5, 0.6]]),
        final_loss=0.5,
        task_losses=[0.7, 0.5],
        timing={
            "setup_seconds": 1.0,
            "compile_seconds": 0.0,
            "train_seconds": 4.0,
            "eval_seconds": 0.5,
        },
        global_step=20,
        gradient_steps=20,
        samples_seen=200,
    )


def record_of(progress):
    return RunRecord.of(
        progress,
        seed=4,
        test_sizes=[100, 200],
        execution={"strategy": "sequential", "num_threads": 1, "chunk_steps": 10},
        device="cpu",
    )


def test_a_metric_without_a_value_says_why(progress):
    """Forward transfer in scenario class, which alone has a second matrix."""
    assert "undefined" not in record_of(progress).as_dict()
    progress.accuracy_matrix_task_aware = progress.accuracy_matrix.copy()
    entry = record_of(progress).as_dict()
    assert entry["metrics"]["forward_transfer"] is None
    assert "never predicted" in entry["undefined"]["forward_transfer"]


def test_record_of_a_run(progress):
    record = record_of(progress)
    entry = record.as_dict()
    assert entry["seed"] == 4
    assert entry["test_sizes"] == [100, 200]
    assert entry["train_loss"] == {"final": 0.5, "per_task": [0.7, 0.5]}
    assert entry["timing"] == {
        "setup_seconds": 1.0,
        "compile_seconds": 0.0,
        "train_seconds": 4.0,
        "eval_seconds": 0.5,
        "steps": 20,
        "steps_per_second": 5.0,
    }
    cost = entry["cost"]
    assert (cost["samples_seen"], cost["gradient_steps"], cost["memory_bytes"]) == (200, 20, 0)
    assert cost["peak_rss_bytes"] > 10 * 2**20
    progress.accuracy_matrix[2, 1] = 0.0  # the run goes on, and the record is a copy
    assert record.accuracy_matrix[2, 1] == 0.6


def test_a_run_without_a_step_has_no_rate(progress):
    progress.timing["train_seconds"] = 0.0
    assert record_of(progress).timing["steps_per_second"] is None


def test_record_callback_rewrites_after_each_validation(tmp_path, progress):
    callback = RecordCallback(results=start(tmp_path, seeds=[4]))
    whole = progress.accuracy_matrix
    for row in range(3):
        progress.accuracy_matrix = np.where(np.arange(3)[:, None] <= row, whole, np.nan)
        callback.on_after_validation(SimpleNamespace(record=lambda: record_of(progress)))
        record = read_json(tmp_path)
        matrix = record["runs"][0]["accuracy_matrix"]
        assert record["status"] == "running"
        assert [values[0] is not None for values in matrix] == [i <= row for i in range(3)]


def test_peak_memory_is_in_bytes():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc here")
    (line,) = [x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM")]
    assert peak_rss_bytes() == pytest.approx(int(line.split()[1]) * 1024, rel=0.05)


def test_nothing_heavy_is_imported():
    code = (
        "import sys, seqrun.callbacks, seqrun.loggers\n"
        "import seqrun.records.results, seqrun.evaluation.figures\n"
        "seqrun.records.results.environment()\n"
        "heavy = ['torch', 'jax', 'matplotlib', 'rich', 'tqdm', 'scipy', 'hydra', 'omegaconf']\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def checkout(tmp_path):
    """A git checkout whose directory `package` holds one tracked file."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8"
        ).stdout.strip()

    git("init", "-q")
    git("add", "package")
    git("commit", "-q", "-m", "first")
    git("tag", "v1")
    return package, git("rev-parse", "HEAD")


@needs_git
def test_commit_of_the_checkout(checkout):
    package, commit = checkout
    assert results_module._git_commit(package) == (commit, False)
    (package / "__init__.py").write_text("changed = True", encoding="utf-8")
    assert results_module._git_commit(package) == (commit, True)


@needs_git
def test_an_untracked_package_claims_no_commit(checkout):
    package, _ = checkout
    installed = package.parent / ".venv" / "seqrun"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("", encoding="utf-8")
    assert results_module._git_commit(installed) == (None, None)


def test_no_checkout_no_commit(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").write_text("", encoding="utf-8")
    assert results_module._git_commit(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert results_module._git_commit(tmp_path) == (None, None)


def test_environment_names_a_missing_framework_as_null(monkeypatch):
    version = results_module.metadata.version

    def without_jax(package):
        if package == "jax":
            raise results_module.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(results_module.metadata, "version", without_jax)
    assert environment()["jax"] is None

"""Runs the command line with every logger and callback, and reads the files back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from experiments import build
from loggers.tracker_files import comet_messages, comet_metrics, events, points, wandb_run
from runs.test_resume import StopAfter, Stopped

from seqrun.callbacks import CheckpointCallback, MetricCallback
from seqrun.cli.listing import CONF
from seqrun.files import matrix_from_csv
from seqrun.loggers import CometLogger, LocalLogger, RunInfo, TensorBoardLogger, WandbLogger
from seqrun.records import checkpoint

SECRET = "0123456789abcdef0123456789abcdef01234567"
RUN = (
    "algo=er",
    "logger=[console,local,tensorboard,wandb,comet]",
    "callbacks=[metrics,progress,checkpoint,early_stopping,stability_gap,preview,timing]",
    "benchmark.num_tasks=2",
    "benchmark.samples_per_task=100",
    "benchmark.validation_fraction=0.2",
    "training.epochs_per_task=2",
    "backbone.width=16",
    "logger.tensorboard.close_seconds=60",
    "logger.wandb.close_seconds=60",
    "logger.comet.close_seconds=60",
    "hydra.run.dir=run",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Execute RUN in its own process, with the trackers' API keys in its environment."""
    place = tmp_path_factory.mktemp("trackers")
    keys = {"WANDB_API_KEY": SECRET, "COMET_API_KEY": SECRET, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(CONF.parent / "run.py"), *RUN],
        cwd=place,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        env={**os.environ, **keys},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "warning" not in done.stderr and "COMET" not in done.stdout + done.stderr
    return place / "run"


def logged(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return name -> (step, value) of the values in metrics.jsonl."""
    named = defaultdict(list)
    for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        step, _, _ = values.pop("step"), values.pop("epoch"), values.pop("task")
        for name, value in values.items():
            named[name].append((step, value))
    return dict(named)


def close(a: list, b: list) -> None:
    """Return whether (step, value) are equal, in order; trackers store float32 or text."""
    assert [step for step, _ in a] == [step for step, _ in b]
    np.testing.assert_allclose([v for _, v in a], [v for _, v in b], rtol=1e-6)


def config_of(directory: Path) -> dict[str, Any]:
    return yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))


def metrics_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))["runs"][0][
        "metrics"
    ]


def every_tenth(named: dict[str, list]) -> dict[str, list]:
    return {**named, "loss": [p for p in named["loss"] if p[0] % 10 == 0]}


@pytest.mark.ci
def test_tensorboard(directory):
    reader = events(directory / "tensorboard")
    expected = logged(directory)
    assert sorted(reader.Tags()["scalars"]) == sorted(expected)
    for name, values in expected.items():
        close(points(reader, name), values)
    (image,) = reader.Images("accuracy_matrix")
    assert image.encoded_image_string[:4] == b"\x89PNG" and image.width > image.height / 2 > 0
    (text,) = reader.Tensors("config")
    config = text.tensor_proto.string_val[0].decode().removeprefix("```\n").removesuffix("\n```")
    assert json.loads(config) == config_of(directory)
    (text,) = reader.Tensors("metrics")
    table = text.tensor_proto.string_val[0].decode()
    for name, value in metrics_of(directory).items():
        assert f"| {name} | {value:.6g} |" in table
    hyper = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert hyper.plugin_name == "hparams" and b"memory_size" in hyper.content


@pytest.mark.ci
def test_wandb(directory):
    (path,) = (directory / "wandb").glob("offline-run-*/*.wandb")
    run = wandb_run(path)
    named = defaultdict(list)
    for row in run["rows"]:
        for name, value in row.items():
            named[name].append((row.get("step"), value))
    for name, values in every_tenth(logged(directory)).items():
        close(named[name], values)
    assert [row["_step"] for row in run["rows"]] == list(range(len(run["rows"])))
    own = {k: v for k, v in run["config"].items() if k != "_wandb"}
    assert own == config_of(directory)
    for name, value in metrics_of(directory).items():
        assert run["summary"][f"final/{name}"] == pytest.approx(value)
    image = path.parent / "files" / run["rows"][-1]["accuracy_matrix/path"]
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert run["exit_code"] == 0


@pytest.mark.ci
def test_comet(directory):
    (archive,) = (directory / "comet").glob("*.zip")
    named = comet_metrics(archive)
    assert set(named.pop("task")) <= {(s, t) for s in range(99) for t in (0, 1, 2)}
    expected = every_tenth(logged(directory))
    assert set(named) - set(expected) <= {"process duration"}  # the client's own
    for name, values in expected.items():
        close(named[name], values)
    messages = comet_messages(archive)
    other = {m["payload"]["key"]: m["payload"]["value"] for m in messages if "key" in m["payload"]}
    for name, value in metrics_of(directory).items():
        assert other[f"final/{name}"] == pytest.approx(value)
    assert other["status"] == "completed"
    parameters = [m["payload"].get("param", {}) for m in messages if m["type"] == "parameter_msg"]
    by_name = {p.get("paramName"): p.get("paramValue") for p in parameters}
    assert by_name["optimizer.lr"] == config_of(directory)["optimizer"]["lr"]
    with zipfile.ZipFile(archive) as file:
        assert any(file.read(name)[:4] == b"\x89PNG" for name in file.namelist())


@pytest.mark.ci
def test_no_file_holds_a_key(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    assert SECRET.encode() not in archive.read(name), name


@pytest.mark.ci
def test_callbacks_left_their_files(directory):
    inputs = sorted(p.name for p in (directory / "figures" / "inputs").iterdir())
    assert inputs == ["task_1.png", "task_2.png"]
    assert (directory / "figures" / "stability_gap.png").exists()
    gap = json.loads((directory / "stability_gap.json").read_text(encoding="utf-8"))
    assert gap["steps"] == [10, 20, 20, 30, 40, 40]  # and after each task
    named = logged(directory)
    first, second = gap["worst_case_accuracy"]
    assert named["worst_case_accuracy"] == [(20, first), (40, second)]
    assert [step for step, _ in named["validation_accuracy"]] == [10, 20, 30, 40]
    matrix = matrix_from_csv((directory / "accuracy_matrix.csv").read_text(encoding="utf-8"))
    assert gap["accuracy"][-1] == matrix[2].tolist()
    phases = [json.loads(line)["phase"] for line in open(directory / "timing.jsonl")]
    assert phases.count("epoch") == 4 and phases.count("task") == 2


# ---- a run that is stopped and continued


def make(directory: Path, stop_after: int | None, trackers: list) -> Any:
    callbacks = [MetricCallback(), CheckpointCallback(every_steps=4)]
    if stop_after is not None:
        callbacks.append(StopAfter(stop_after))
    spec = {"stream": {"num_tasks": 2, "samples_per_task": 60}, "training": {"chunk_steps": 2}}
    algorithm = build("naive", "torch", callbacks=callbacks, **spec)
    algorithm.run_dir, algorithm.config_hash = directory, "abc"
    algorithm.loggers = [LocalLogger(figures=False), *trackers]
    return algorithm


def resumed(directory: Path, *trackers: Any) -> Any:
    """Stop a run within each task, some steps after a checkpoint, and continue it each time."""
    start = None
    for stop in (2, 4):
        run = make(directory, stop, [kind(close_seconds=60) for kind in trackers])
        with pytest.raises(Stopped):
            run.fit(resume_from=start)
        start, _ = checkpoint.latest(directory, config_hash="abc")
        saved = start.state["counters"]["global_step"]
        assert saved < run.progress.global_step, "some steps come again"
    algorithm = make(directory, None, [kind(close_seconds=60) for kind in trackers])
    algorithm.fit(resume_from=start)
    return algorithm


@pytest.mark.ci
def test_a_resumed_tensorboard_file_holds_every_value_once(tmp_path):
    resumed(tmp_path, TensorBoardLogger)
    (path,) = (tmp_path / "tensorboard").iterdir()
    reader = events(path.parent)
    for name, values in logged(tmp_path).items():
        close(points(reader, name), values)
    assert len(reader.Tensors("config")) == len(reader.Tensors("metrics")) == 1


@pytest.mark.ci
def test_a_run_that_begins_anew_starts_the_event_file_anew(tmp_path):
    for stop in (0, None):
        try:
            make(tmp_path, stop, [TensorBoardLogger()]).fit()
        except Stopped:
            continue
    reader = events(tmp_path / "tensorboard")
    for name, values in logged(tmp_path).items():
        close(points(reader, name), values)


@pytest.mark.ci
def test_an_event_file_that_was_cut_off_is_continued(tmp_path):
    """An incomplete record at the end of a killed run is dropped."""
    info = RunInfo(
        name={"algo": "a", "benchmark": "b", "backbone": "c", "backend": "torch"},
        seed=0,
        num_tasks=1,
        directory=tmp_path,
    )
    first = TensorBoardLogger()
    first.open(info)
    for step in range(5):
        first.log({"a": float(step)}, step=step, epoch=1, task=1)
    state = first.export_state()
    first.close("interrupted")
    (path,) = (tmp_path / "tensorboard").iterdir()
    os.truncate(path, path.stat().st_size - 3)
    second = TensorBoardLogger()
    second.open(info)
    second.import_state(state)
    second.log({"a": 5.0}, step=5, epoch=1, task=1)
    second.close("completed")
    assert points(events(path.parent), "a") == [(s, float(s)) for s in (0, 1, 2, 3, 5)]


@pytest.mark.ci
def test_resumed_wandb_and_comet_parts_belong_together(tmp_path):
    resumed(tmp_path, WandbLogger, CometLogger)
    parts = [wandb_run(path) for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    assert len(parts) == 3 and len({part["id"] for part in parts}) == 1
    rows: dict[int, dict] = {}
    for part in parts:
        for row in part["rows"]:
            values = {k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")}
            assert rows.setdefault(row["_step"], values) == values  # sent twice with the same value
    assert sorted(rows) == list(range(len(rows)))
    expected = every_tenth(logged(tmp_path))
    ordered = [rows[number] for number in sorted(rows)]
    for name, values in expected.items():
        close([(row["step"], row[name]) for row in ordered if name in row], values)
    archives = list((tmp_path / "comet").glob("*.zip"))
    assert len(archives) == 3 and len({path.name[:32] for path in archives}) == 1
    union: dict[str, set] = defaultdict(set)
    for archive in archives:
        for name, values in comet_metrics(archive).items():
            union[name] |= set(values)
    for name, values in expected.items():
        close(sorted(union[name]), values)


@pytest.mark.ci
def test_tensorboard_needs_no_framework(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from seqrun.loggers import RunInfo, TensorBoardLogger\n"
        "logger = TensorBoardLogger()\n"
        "name = dict(algo='a', benchmark='b', backbone='c', backend='jax')\n"
        "logger.open(RunInfo(name=name, seed=0, num_tasks=1, directory=Path(sys.argv[1])))\n"
        "logger.log({'a': 1.0}, step=0, epoch=0, task=0)\n"
        "logger.close('failed')\n"
        "assert not {'torch', 'jax', 'tensorflow', 'wandb', 'comet_ml'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert points(events(tmp_path / "tensorboard"), "a") == [(0, 1.0)]


@pytest.mark.ci
def test_runs_in_one_program_keep_their_trackers_apart(tmp_path):
    """No client ends or changes the run of another seed in the same process."""
    command = [sys.executable, "-W", "ignore", str(CONF.parent / "run.py"), *RUN, "backend=jax"]
    command += ["seed=[0,1]", "seeds_strategy=vmap"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = []
    for seed in (0, 1):
        directory = tmp_path / "run" / "seeds" / str(seed)
        (archive,) = (directory / "comet").glob("*.zip")
        (file,) = (directory / "wandb").glob("offline-run-*/*.wandb")
        expected = every_tenth(logged(directory))["loss"]
        close(comet_metrics(archive)["loss"], expected)
        rows = [row for row in wandb_run(file)["rows"] if "loss" in row]
        close([(row["step"], row["loss"]) for row in rows], expected)
        losses.append([value for _, value in expected])
    assert losses[0] != losses[1]

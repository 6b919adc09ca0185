"""Every file of reproductions/: it composes, says what it reproduces, and its command runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments import BACKENDS
from hydra import compose, initialize_config_dir
from reproductions import tiny_data

from seqrun.cli import preflight
from seqrun.cli.listing import CONF, options
from seqrun.config import build as experiment
from seqrun.config.compose import register, resolved
from seqrun.config.schema import seeds_of
from seqrun.evaluation.verdict import Expected
from seqrun.reproductions.__main__ import rows_of
from seqrun.runs import runner

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "reproductions"
FILES = {f"{path.parent.name}/{path.stem}": path for path in sorted(FOLDER.glob("*/*.yaml"))}
PROTOCOLS = [name for name in FILES if name.startswith("protocols/")]
ROWS = [name for name in FILES if name not in PROTOCOLS]
GPU = [row.name for row in rows_of(FOLDER) if row.expected.machine == "gpu"]
SHOWN = {"torch": "PyTorch", "jax": "JAX"}
MEASURED = {
    name: [SHOWN[backend] for backend in found]
    for name, found in json.loads((FOLDER / "results.json").read_text(encoding="utf-8")).items()
}
"""Row -> the backends that it was measured on."""
WHOLE = "mcsgd2021/rotated_mnist_mcsgd", "protocols/der_split_mnist"
"""Files that go through the whole preflight by default; with `full`, all files do."""
ON_GPU = "mcsgd2021/split_cifar100_naive", "torch"
SMALL = {"kcl": ["algo.num_bases=16"], "agem": ["algo.memory_batch_size=8"]}
"""Algorithm -> keys that make its rows small."""


@pytest.fixture
def without_data(monkeypatch):
    """Skip the search for data, which is tested elsewhere."""
    monkeypatch.setattr(experiment, "check_data", lambda *_: None)


def composed(*overrides: str) -> list[dict[str, Any]]:
    """Return the plain experiment on each backend, built."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="run"):
        cfg = compose("config", overrides=list(overrides))
    configs = []
    for backend in BACKENDS:
        cfg.backend = backend
        configs.append(resolved(cfg))
        experiment.check(configs[-1])
    return configs


def _siblings() -> set[str]:
    """Return the rows whose protocol and algorithm both occur in earlier rows."""
    seen: set[str] = set()
    found = set()
    for name in ROWS:
        kinds = {
            str(entry)
            for entry in yaml.safe_load(FILES[name].read_text(encoding="utf-8"))["defaults"]
        }
        if kinds <= seen:
            found.add(name)
        seen |= kinds
    return found


SIBLINGS = _siblings() | set(PROTOCOLS)  # such a row adds only numbers


@pytest.mark.ci
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.full] if n in SIBLINGS else []) for n in FILES],
)
def test_composes_on_both_backends(name):
    """The same experiment on both, with the numbers that the file states."""
    torch, jax = composed(f"reproductions={name}")
    stated = yaml.safe_load(FILES[name].read_text(encoding="utf-8"))
    for config in (torch, jax):
        for group in ("algo", "benchmark", "backbone", "optimizer", "training"):
            for key, value in stated.get(group, {}).items():
                assert config[group][key] == value
        assert config["benchmark"] == torch["benchmark"]
        assert seeds_of(config) == stated.get("seed", seeds_of(config))
    assert (torch["expected"] is None) == (name in PROTOCOLS)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=[] if name in WHOLE else [pytest.mark.full])
        for name in FILES
        for backend in BACKENDS
    ],
)
def test_command_passes_the_preflight(without_data, tmp_path, monkeypatch, name, backend):
    """As run.py checks it."""
    monkeypatch.chdir(tmp_path)
    (job,) = preflight.check([f"reproductions={name}", f"backend={backend}"], CONF)
    assert job.config["backend"] == backend and job.is_alone


@pytest.mark.parametrize("name", ROWS)
def test_row_says_what_it_reproduces(name):
    """In its first lines and in `expected`, with seeds enough for a verdict."""
    text = FILES[name].read_text(encoding="utf-8")
    package, first, command, *_ = text.splitlines()
    assert package == "# @package _global_"
    assert first.startswith("# ") and "%" in first and "(" in first
    assert command == f"# python run.py reproductions={name}"
    assert max(map(len, text.splitlines())) <= 100
    node = yaml.safe_load(text)
    expected = Expected.of(node["expected"])
    number = next(iter(expected.metrics.values()))
    percent = 100 * number.mean
    assert f"{percent:g}" in first or number.tolerance is not None
    assert number.std is None or f"+- {100 * number.std:g} %" in first
    assert next(iter(expected.metrics)) == "average_accuracy"
    doubtful = ("recalled", "read off")
    assert (expected.status == "unconfirmed") == expected.source.startswith(doubtful)


@pytest.mark.parametrize("name", ROWS)
def test_row_says_how_long_it_takes(name):
    """Once it is measured, in a comment for readers and in a key that orders the rows."""
    line = FILES[name].read_text(encoding="utf-8").splitlines()[3]
    expected = Expected.of(yaml.safe_load(FILES[name].read_text(encoding="utf-8"))["expected"])
    if name in GPU:
        assert line == "# Meant for a GPU; not timed."
    elif name in MEASURED:
        assert line.startswith("# Takes about ") and all(word in line for word in MEASURED[name])
        assert expected.minutes


@pytest.mark.parametrize("name", ROWS)
def test_seeds_are_enough_for_an_interval(name):
    """At least three different seeds; CPU rows state their threads, so that bits repeat."""
    nodes = [yaml.safe_load(FILES[name].read_text(encoding="utf-8"))]
    while inherited := [d for d in nodes[-1].get("defaults", []) if isinstance(d, str)]:
        protocol = inherited[0].removeprefix("/reproductions/").removesuffix("@_global_")
        nodes.append(yaml.safe_load(FILES[protocol].read_text(encoding="utf-8")))
    seeds = next(node["seed"] for node in nodes if "seed" in node)
    assert len(set(seeds)) == len(seeds) >= 3
    if nodes[0]["expected"].get("machine", "cpu") == "cpu":
        assert any(node.get("num_threads") == 1 for node in nodes)


ROWS_FOUND = {row.name: row for row in rows_of(FOLDER)}
KEY_OF_STRENGTH = ("alpha", "beta", "ewc_lambda", "lfl_lambda", "mas_lambda", "si_lambda")
CONTROLS = ("hsu2018/class_ewc", "der2020/rotated_mnist_derpp_200", "mcsgd2021/rotated_mnist_mcsgd")
"""One of each kind."""


@pytest.mark.ci
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in CONTROLS else [pytest.mark.full]) for n in ROWS]
)
def test_control_is_the_row_at_strength_0(name):
    """Naive in all else the same, the row's method at 0, or the paper's own naive row."""
    row = ROWS_FOUND[name]
    torch, _ = composed(f"reproductions={name}")
    if row.control is None:
        assert _is_off(torch)
        return
    control, _ = composed(f"reproductions={row.control.file}", *row.control.overrides)
    assert _is_off(control)
    if row.name.split("/")[0] not in ("lamaml2020", "stable_sgd2020"):
        keys = ("benchmark", "backbone", "optimizer", "training")
        assert [control[key] for key in keys] == [torch[key] for key in keys]


def _is_off(config: dict[str, Any]) -> bool:
    strengths = [config["algo"][key] for key in KEY_OF_STRENGTH if key in config["algo"]]
    return config["algo"]["_target_"].endswith(".Naive") or (bool(strengths) and not any(strengths))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_has_no_number(name):
    """It is shared by rows, each with its own."""
    text = FILES[name].read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n# ")
    assert "expected" not in yaml.safe_load(text)
    assert any(
        f"/reproductions/{name}@_global_" in path.read_text(encoding="utf-8")
        for path in FILES.values()
    )


def test_protocol_takes_any_algorithm():
    """Algorithm and protocol are two overrides."""
    torch, _ = composed("reproductions=protocols/der_split_mnist", "algo=ewc")
    assert torch["algo"]["_target_"].endswith("ewc.torch.EWC")
    assert torch["benchmark"]["softmax_over"] == "all"


def test_all_are_listed():
    """`make list` shows each file once, with its first line."""
    listed = {option.name: option for option in options(CONF, "reproductions")}
    assert sorted(listed) == sorted(FILES)
    for name, option in listed.items():
        assert option.description == FILES[name].read_text(encoding="utf-8").splitlines()[
            1
        ].removeprefix("# ")
        assert option.backends == BACKENDS


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(n, b, marks=[] if (n, b) == ON_GPU else [pytest.mark.full])
        for n in GPU
        for b in BACKENDS
    ],
)
def test_gpu_row_runs_two_tasks(tmp_path, monkeypatch, name, backend):
    """On generated data that go through the real loading code, to a verdict that is kept."""
    tiny_data.install(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    algo = (FILES[name].read_text(encoding="utf-8").partition("/algo: ")[2].split() or [""])[0]
    keys = ["benchmark.num_tasks=2", "benchmark.batch_size=4", "benchmark.samples_per_task=24"]
    keys += ["training.epochs_per_task=1", "seed=[0]", *SMALL.get(algo, [])]
    if "split_cifar100" in name:
        keys += ["benchmark.classes_per_task=5", "backbone.nf=2"]
    else:
        keys += ["backbone.width=8"]
    command = [f"reproductions={name}", f"backend={backend}", "device=cpu", "logger=[local]"]
    command += ["logger.local.figures=false", f"data_dir={tmp_path / 'data'}", *keys]
    (job,) = preflight.check(command, CONF)
    results = runner.run_experiment(job.config, tmp_path / "run", overrides=command)
    assert results.status == "completed"
    assert results.verdict is not None
    assert results.verdict["changed"] == [key for key in keys if not key.startswith("seed=")]
    assert results.verdict["metrics"]["average_accuracy"]["seeds"] == 1

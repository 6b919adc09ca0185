"""The data that a search selects on, by the jobs it checks and the command it prints."""

from __future__ import annotations

import shutil

import pytest
from omegaconf import OmegaConf

from seqrun.cli import preflight
from seqrun.cli.listing import CONF
from seqrun.sweeps.validation import command

SPACE = "optimizer.lr=interval(0.01, 0.1)"
SEARCH = ("-m", "hydra/sweeper=search", "algo=naive", SPACE)
KEY = "benchmark.validation_fraction"
FILE = "# @package _global_\ndefaults:\n  - override /hydra/sweeper: search\n"


def fractions(argv, conf=CONF) -> list[float]:
    """Return the validation fraction of each job of a command."""
    return [job.config["benchmark"]["validation_fraction"] for job in preflight.check(argv, conf)]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (SEARCH, [0.1, 0.1]),
        ((*SEARCH, f"{KEY}=0"), [0, 0]),
        ((*SEARCH, f"++{KEY}=0"), [0, 0]),
        ((*SEARCH, f"{KEY}=0.3"), [0.3, 0.3]),
        ((*SEARCH, f"{KEY}=choice(0.2,0.3)"), [0.2, 0.2, 0.3]),
        ((*SEARCH, f"+hydra.sweeper.params={{{KEY}: '0'}}"), [0, 0]),
        (("-m", "algo=naive", "seed=0,1"), [0, 0]),  # a grid holds nothing out
    ],
)
def test_a_search_holds_out_data_unless_the_fraction_is_set(elsewhere, argv, expected):
    assert fractions(argv) == expected


@pytest.mark.ci
@pytest.mark.parametrize(
    ("content", "expected"),
    [("", 0.1), (f"benchmark:\n  {KEY.split('.')[1]}: 0\n", 0), ("benchmark:\n  pad_to: 9\n", 0.1)],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_sweep_file_may_set_the_fraction(tmp_path, elsewhere, content, expected, beside):
    """Even to 0, the default of conf/benchmark; in conf/ or in --config-dir."""
    conf = tmp_path / "conf"
    flags = ["--config-dir", str(conf)] if beside else []
    if not beside:
        shutil.copytree(CONF, conf)
    (conf / "sweeps").mkdir(parents=True, exist_ok=True)
    node = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {optimizer.lr: 'interval(0.1,1)'}\n"
    (conf / "sweeps" / "mine.yaml").write_text(FILE + content + node, encoding="utf-8")
    found = fractions([*flags, "sweeps=mine"], CONF if beside else conf)
    assert found == [expected, expected]


WATCHED = ("callbacks=[metrics,early_stopping]", "training.epochs_per_task=2")
MEASURED_ON = "callbacks.early_stopping.measured_on"


@pytest.mark.ci
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((*SEARCH, *WATCHED), "validation"),
        ((*SEARCH, *WATCHED, f"{KEY}=0.3"), "validation"),
        ((*SEARCH, *WATCHED, f"{MEASURED_ON}=test"), "test"),  # said by the command itself
        ((*SEARCH, *WATCHED, f"{KEY}=0", "callbacks.early_stopping.split=test"), "test"),
        (("sweeps=learning_rate", "algo=naive", *WATCHED), "validation"),
        ((*SEARCH, "callbacks=choice(early_stopping,metrics)"), "validation"),
        (
            (
                "sweeps=learning_rate",
                "algo=naive",
                "optimizer.lr=0.1,0.2",
                "callbacks=[metrics],[early_stopping]",
            ),
            "validation",
        ),
        (("sweeps=seeds", "algo=naive", *WATCHED, f"{KEY}=0.1"), "test"),
        (("-m", "seed=0,1", "algo=naive", *WATCHED, f"{KEY}=0.1"), "test"),
        (("algo=naive", *WATCHED, f"{KEY}=0.1"), "test"),
    ],
)
def test_early_stopping_in_a_search_measures_on_held_out_data(elsewhere, argv, expected):
    jobs = preflight.check(argv, CONF)
    nodes = [job.config["callbacks"].get("early_stopping") for job in jobs]
    found = {node["measured_on"] for node in nodes if node}
    assert found == {expected}


@pytest.mark.parametrize(
    ("own", "chosen", "expected", "once"),
    [
        (0, {KEY: "0.1", "optimizer.lr": 0.2}, f"optimizer.lr=0.2 {KEY}=0.0", True),
        (0, {"sweeps": "x", KEY: "0.1"}, f"{KEY}=0.0", True),
        (0.2, {"algo": "si"}, f"algo=si {KEY}=0.0", True),
        (0, {f"++{KEY}": 0.5}, f"{KEY}=0.0", True),
        (0, {KEY: "0", "algo": "si"}, f"{KEY}=0 algo=si", False),
        (0, {"algo": "si"}, "algo=si", False),
        (0, {"seed": [0, 1]}, "'seed=[0, 1]'", False),
        (None, {f"+{KEY}": "0.1"}, f"+{KEY}=0.0", True),
        # early stopping watches what is held out, while the test data are measured
        (0, {f"++{MEASURED_ON}": "validation", KEY: "0.1"}, f"{KEY}=0.1", True),
        (0.2, {f"++{MEASURED_ON}": "validation"}, f"{KEY}=0.2", True),
        (0, {MEASURED_ON: "test", KEY: "0.1"}, f"{MEASURED_ON}=test {KEY}=0.1", False),
    ],
)
def test_the_command_that_measures_the_best(own, chosen, expected, once):
    """It measures on the test data; whether that is new depends on the best trial's overrides."""
    node = {} if own is None else {"validation_fraction": own}
    cfg = OmegaConf.create({"benchmark": node})
    assert command(cfg, chosen) == (f"python run.py {expected}", once)

"""RESULTS.md: its lines for hand-made records, with verdicts from the rows' current files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqrun.checks import BACKENDS, ConfigError
from seqrun.evaluation.verdict import Expected
from seqrun.reproductions import __main__ as reproduce
from seqrun.reproductions.page import HEAD, results_page
from seqrun.reproductions.records import PAGE, RECORDS, Records
from seqrun.reproductions.rows import FOLDER, Row, protocol_of, rows_of

COMMIT, PROTOCOL = "0123456789abcdef", "abc"


def row(name: str, status: str = "confirmed", **metrics: dict[str, float]) -> Row:
    """Return a row with these numbers."""
    node = {"paper": "Someone 2020", "table": "1", "source": "there", "status": status}
    return Row(name, Expected.of({**node, "metrics": metrics}), PROTOCOL)


def record(seconds: float, seeds: int = 3, **metrics: dict[str, Any]) -> dict[str, Any]:
    """Return a run's record in results.json."""
    found = {"metrics": metrics, "seeds": list(range(seeds)), "seconds": seconds}
    return {**found, "commit": COMMIT, "protocol": PROTOCOL}


NAIVE = row("alpha2020/naive", average_accuracy={"mean": 0.2})
BOTH = row(
    "alpha2020/both",
    average_accuracy={"mean": 0.5, "std": 0.0125},
    average_accuracy_task_aware={"mean": 0.9},
)
ROWS = [
    replace(BOTH, control=NAIVE),
    NAIVE,
    row("alpha2020/one", "unconfirmed", average_accuracy={"mean": 0.25, "tolerance": 0.02}),
    row("beta2021/none", average_forgetting={"mean": 0.01}),
]


def measured(mean: float | None, std: float | None, seeds: int = 3) -> dict[str, Any]:
    """Return what is kept of a metric; t(0.975) = 4.302653 of three seeds, 2.776445 of five."""
    quantile = {3: 4.302653, 5: 2.776445}.get(seeds, 0.0)
    half_width = None if std is None else quantile * std / seeds**0.5
    return {"mean": mean, "std": std, "half_width": half_width, "seeds": seeds}


ACCURACY = measured(0.5123, 0.002)
CONTENT = {
    "alpha2020/both": {
        "torch": record(
            61.4, average_accuracy=ACCURACY, average_accuracy_task_aware=measured(0.9512, None, 1)
        ),
        "jax": record(
            30.6,
            5,
            average_accuracy=measured(0.56, 0.002, 5),
            average_accuracy_task_aware=measured(None, None, 0),
        ),
    },
    "alpha2020/naive": {"torch": record(3.0, average_accuracy=measured(0.201, 0.001))},
    "alpha2020/one": {"jax": record(5.0, average_accuracy=measured(0.27, 0.01))},
    "alpha2020/gone": {b: record(5.0, average_accuracy=ACCURACY) for b in BACKENDS},
}


def test_page():
    """Every line, by hand; a row that is no longer there counts nowhere.

    0.0125 of one published run (their number is not known): sqrt(0.002^2 / 3 + 0.0125^2) = 0.01255,
    times 4.302653 = 0.0540; with five seeds of 2.776445, 0.0348. The naive row's own deviation
    stands for theirs: 4.302653 * 0.001 * sqrt(1 + 1 / 3) = 0.0050.
    """
    page = results_page(ROWS, CONTENT)
    assert page.startswith(HEAD) and page.endswith("|\n")
    heads = "| row | metric | published | torch | jax | difference | verdict | tells | seeds | s "
    assert page[len(HEAD) :].strip().splitlines() == [
        "| rows | backend | reproduced | above | below | inconclusive | not measured "
        "| cannot tell |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| confirmed | torch | 1 | 0 | 0 | 1 | 1 | 0 |",
        "| confirmed | jax | 0 | 1 | 0 | 0 | 2 | 0 |",
        "| recalled | torch | 0 | 0 | 0 | 0 | 1 | 0 |",
        "| recalled | jax | 0 | 0 | 0 | 1 | 0 | 0 |",
        "",
        "JAX minus PyTorch, paired over common seeds, has a 95 % interval that holds 0 in",
        "0 of 0 numbers measured on both, where chance alone",
        "leaves 0.",
        "",
        "## alpha2020",
        "",
        "Someone 2020",
        "",
        heads + "| commit |",
        "| --- " * 11 + "|",
        "| both | average accuracy | 50.00 ± 1.25 | 51.23 ± 0.50 | 56.00 ± 0.25 "
        "| +1.23 ± 5.40 in ± 2.50, +6.00 ± 3.48 in ± 2.50 "
        "| inconclusive (no number of seeds would decide), above "
        "| yes, ? | 3, 5 | 61, 31 | 01234567 |",
        "|  | average accuracy, task given | 90.00° | 95.12 | undefined "
        "| +5.12 in ± 1.00, undefined in ± 1.00 | inconclusive | ? |  |  |  |",
        "| naive | average accuracy | 20.00° | 20.10 ± 0.25 | not run | +0.10 ± 0.50 in ± 1.00 "
        "| reproduced |  | 3 | 3 | 01234567 |",
        "| one | average accuracy | 25.00 *recalled* | not run | 27.00 ± 2.48 "
        "| +2.00 ± 2.48 in ± 2.00 | inconclusive (no number of seeds would decide) |  | 3 | 5 "
        "| 01234567 |",
        "",
        "## beta2021",
        "",
        "Someone 2020",
        "",
        heads + "| commit |",
        "| --- " * 11 + "|",
        "| none | average forgetting | 1.00° | not run | not run |  |  |  |  |  |  |",
    ]


def test_a_row_that_cannot_tell_says_so():
    """Its control, at 0.5123, would be reproduced as well; an earlier record is not counted."""
    content = {name: {"torch": CONTENT["alpha2020/both"]["torch"]} for name in ("a/b", "a/c")}
    control = row("a/c", average_accuracy={"mean": 0.5, "tolerance": 0.05})
    found = replace(control, name="a/b", control=control)
    assert "| reproduced | no | 3 |" in (page := results_page([found], content))
    assert "| confirmed | torch | 1 | 0 | 0 | 0 | 0 | 1 |" in page
    content["a/b"]["torch"] = {**content["a/b"]["torch"], "outdated": True}
    page = results_page([found], content)
    assert "| reproduced (before its numbers changed) |" in page
    assert "| confirmed | torch | 0 | 0 | 0 | 0 | 1 | 1 |" in page


@pytest.mark.parametrize(
    ("jax", "said"),
    [
        # differences 0.01, 0.02, 0.03: mean 0.02, half 4.302653 * 0.01 / sqrt(3) = 0.0248
        ((0.61, 0.32, 0.83), "1 of 1 numbers measured on both, where chance alone\nleaves 1."),
        # 0.018, 0.020, 0.022: half 0.0050, though seeds are far apart
        (
            (0.618, 0.320, 0.822),
            "0 of 1 numbers measured on both, where chance alone\n"
            "leaves 1; not in: alpha2020/both (average accuracy: +2.00 ± 0.50).",
        ),
    ],
)
def test_backends_agree_by_the_paired_difference(jax: tuple[float, ...], said: str):
    """Over common seeds; what one backend alone has, in another order, does not count."""
    torch = {"seeds": [0, 1, 2, 9], "values": {"average_accuracy": [0.6, 0.3, 0.8, 0.0]}}
    other = {"seeds": [5, 2, 1, 0], "values": {"average_accuracy": [1.0, *reversed(jax)]}}
    pair = {
        backend: record(1.0, average_accuracy=ACCURACY) | found
        for backend, found in (("torch", torch), ("jax", other))
    }
    assert said in results_page([BOTH], {"alpha2020/both": pair})


FORM = "must be <paper>/<row>, with * for any text"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Let `make reproduce` keep its files in a folder of the test's own; return it."""
    folder = tmp_path / FOLDER
    for name in ("hsu2018/class_si", "si2017/permuted_mnist", "protocols/hsu2018"):
        source = reproduce.ROOT / FOLDER / f"{name}.yaml"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / f"{name}.yaml")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    return folder


def test_only_the_page(elsewhere):
    """It is written from results.json with a line for each existing row; nothing is run."""
    records = {"hsu2018/class_si": {"torch": record(9.0, average_accuracy=ACCURACY)}}
    (elsewhere / RECORDS).write_text(json.dumps(records), encoding="utf-8")
    assert reproduce.main(["--page"]) == 0
    page = (elsewhere / PAGE).read_text(encoding="utf-8")
    line = "| class_si | average accuracy | 19.67 ± 0.09 | 51.23 ± 0.50 | not run | +31.56 ± 0.46"
    assert f"{line} in ± 1.00 | above (of an earlier protocol) |" in page
    assert "| permuted_mnist | average accuracy | 96.94° | not run | not run |" in page
    assert "protocols" not in page
    assert json.loads((elsewhere / RECORDS).read_text(encoding="utf-8")) == records


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("hsu2019/*", f"{FORM}; make list names all"),
        ("protocols/*", f"{FORM}; make list names all"),
        ("hsu2018/class_so", f"{FORM} (did you mean hsu2018/class_si?); make list names all"),
        ("si2017/*", "no such row is for a cpu: --machine gpu"),
    ],
)
def test_no_row_is_an_error(elsewhere, capsys, only, said):
    """One message, and nothing is written."""
    assert reproduce.main(["--only", only]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: --only={only!r}: {said}\n" and captured.out == ""
    assert not (elsewhere / PAGE).exists()


@pytest.mark.parametrize("number", ["0", "-3", "two"])
def test_rows_at_once_are_at_least_one(capsys, number):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--jobs", number])
    assert ended.value.code == 2
    assert f"{number!r}: must be an integer >= 1" in capsys.readouterr().err


def test_rows_that_take_least_time_come_first(elsewhere):
    """A protocol is not a row."""
    path = elsewhere / "hsu2018" / "class_si.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("num_seeds: 10", "num_seeds: 10\n  minutes: 2.5"),
        encoding="utf-8",
    )
    names = [found.name for found in rows_of(elsewhere)]
    assert names == ["si2017/permuted_mnist", "hsu2018/class_si"]


def test_protocol_is_what_the_files_say(elsewhere):
    """It covers the row and the files that it includes, but not comments or `expected`."""
    name = "hsu2018/class_si"
    path, protocol = elsewhere / f"{name}.yaml", elsewhere / "protocols" / "hsu2018.yaml"
    before = protocol_of(elsewhere, name)
    path.write_text(
        path.read_text(encoding="utf-8").replace("mean: 0.1967", "mean: 0.2") + "# more\n",
        encoding="utf-8",
    )
    assert protocol_of(elsewhere, name) == before
    text = protocol.read_text(encoding="utf-8")
    protocol.write_text(text.replace("lr: 0.001", "lr: 0.002"), encoding="utf-8")
    assert protocol.read_text(encoding="utf-8") != text
    changed = protocol_of(elsewhere, name)
    path.write_text(
        path.read_text(encoding="utf-8").replace("xi: 0.1", "xi: 0.2"), encoding="utf-8"
    )
    assert len({before, changed, again := protocol_of(elsewhere, name)}) == 3
    text = protocol.read_text(encoding="utf-8")
    protocol.write_text(text.replace("seed: [0,", "seed: [7, 0,"), encoding="utf-8")
    assert protocol.read_text(encoding="utf-8") != text, "more seeds are no other row"
    assert protocol_of(elsewhere, name) == again


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"hsu2018/class_si": {"torch": {}}}', '{"hsu2018/class_si": 3}', "NaN"]
)
def test_damaged_records_are_told(elsewhere, capsys, text):
    """The error is one line, and the file is unchanged; NaN is not a number either."""
    path = elsewhere / RECORDS
    if text == "NaN":
        accuracy = measured(0.5, 0.1) | {"mean": float("nan")}
        text = json.dumps({"hsu2018/class_si": {"torch": record(1.0, average_accuracy=accuracy)}})
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is not a record of reproductions"):
        Records(elsewhere)
    assert reproduce.main(["--page"]) == 2
    assert capsys.readouterr().err.startswith("error: reproductions/results.json: ")
    assert path.read_text(encoding="utf-8") == text and not (elsewhere / PAGE).exists()

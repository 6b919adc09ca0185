"""RESULTS.md: its lines from hand-made records, judged by what the rows expect now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from seqrun.checks import ConfigError
from seqrun.evaluation.verdict import Expected
from seqrun.reproductions import __main__ as reproduce
from seqrun.reproductions import records as kept

COMMIT, PROTOCOL = "0123456789abcdef", "abc"


def row(name: str, status: str = "confirmed", **metrics: dict[str, float]) -> kept.Row:
    """Return a row with these numbers."""
    node = {"paper": "Someone 2020", "table": "1", "source": "there", "status": status}
    return kept.Row(name, Expected.of({**node, "metrics": metrics}), PROTOCOL)


def record(seconds: float, seeds: int = 3, **metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what results.json keeps of a run."""
    found = {"metrics": metrics, "seeds": list(range(seeds)), "seconds": seconds}
    return {**found, "commit": COMMIT, "protocol": PROTOCOL}


ROWS = [
    row(
        "alpha2020/both",
        average_accuracy={"mean": 0.5, "std": 0.0125},
        average_accuracy_task_aware={"mean": 0.9},
    ),
    row("alpha2020/one", "unconfirmed", average_accuracy={"mean": 0.25}),
    row("beta2021/none", average_forgetting={"mean": 0.01}),
]
ACCURACY = {"mean": 0.5123, "half_width": 0.0045}
CONTENT = {
    "alpha2020/both": {
        "torch": record(
            61.4,
            average_accuracy=ACCURACY,
            average_accuracy_task_aware={"mean": 0.9512, "half_width": None},
        ),
        "jax": record(
            30.6,
            5,
            average_accuracy={"mean": 0.53, "half_width": 0.002},
            average_accuracy_task_aware={"mean": None, "half_width": None},
        ),
    },
    "alpha2020/one": {"jax": record(5.0, average_accuracy=ACCURACY)},
    "alpha2020/gone": {b: record(5.0, average_accuracy=ACCURACY) for b in kept.BACKENDS},
}


def test_page():
    """Every line, by hand; a row that is no longer there counts nowhere."""
    page = kept.results_page(ROWS, CONTENT)
    assert page.startswith(kept.HEAD) and page.endswith("|\n")
    assert page[len(kept.HEAD) :].strip().splitlines() == [
        "| numbers | backend | reproduced | above | below | inconclusive | not run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| confirmed, average accuracy | torch | 1 | 0 | 0 | 0 | 1 |",
        "| confirmed, average accuracy | jax | 0 | 1 | 0 | 0 | 1 |",
        "| confirmed, other metrics | torch | 0 | 0 | 0 | 1 | 0 |",
        "| confirmed, other metrics | jax | 0 | 0 | 0 | 1 | 0 |",
        "| recalled, average accuracy | torch | 0 | 0 | 0 | 0 | 1 |",
        "| recalled, average accuracy | jax | 0 | 1 | 0 | 0 | 0 |",
        "",
        "Torch's and JAX's intervals overlap in 0 of 1 numbers",
        "measured on both; not in alpha2020/both (average accuracy).",
        "",
        "## alpha2020",
        "",
        "Someone 2020",
        "",
        "| row | metric | published | torch | jax | seeds | verdict | s | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| both | average accuracy | 50.00 ± 1.25 | 51.23 ± 0.45 | 53.00 ± 0.20 | 3, 5 "
        "| reproduced, above | 61, 31 | 01234567 |",
        "|  | average accuracy, task given | 90.00 | 95.12 | undefined |  | inconclusive |  |  |",
        "| one | average accuracy | 25.00 *recalled* | not run | 51.23 ± 0.45 | 3 | above | 5 "
        "| 01234567 |",
        "",
        "## beta2021",
        "",
        "Someone 2020",
        "",
        "| row | metric | published | torch | jax | seeds | verdict | s | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| none | average forgetting | 1.00 | not run | not run |  |  |  |  |",
    ]


@pytest.mark.parametrize(
    ("mean", "said"),
    [(0.5187, "in 1 of 1 numbers\nmeasured on both.\n"), (0.5189, "in 0 of 1 numbers\n")],
)
def test_backends_agree_where_their_intervals_overlap(mean, said):
    """0.5123 + 0.0045 = 0.5168 is the upper end of one, `mean` - 0.002 the lower of the other."""
    other = {"mean": mean, "half_width": 0.002}
    measured = {
        "torch": record(1.0, average_accuracy=ACCURACY),
        "jax": record(1.0, average_accuracy=other),
    }
    assert said in kept.results_page(ROWS[:1], {"alpha2020/both": measured})


FORM = "must be <paper>/<row>, with * for any text"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Let `make reproduce` keep its files in a folder of the test's own; return it."""
    folder = tmp_path / kept.FOLDER
    for name in ("hsu2018/class_si", "si2017/permuted_mnist", "protocols/hsu2018"):
        source = reproduce.ROOT / kept.FOLDER / f"{name}.yaml"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / f"{name}.yaml")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    return folder


def test_only_the_page(elsewhere):
    """From results.json, with a line for each row that there is, and nothing run."""
    records = {"hsu2018/class_si": {"torch": record(9.0, average_accuracy=ACCURACY)}}
    (elsewhere / kept.RECORDS).write_text(json.dumps(records), encoding="utf-8")
    assert reproduce.main(["--page"]) == 0
    page = (elsewhere / kept.PAGE).read_text(encoding="utf-8")
    line = "| class_si | average accuracy | 19.67 ± 0.09 | 51.23 ± 0.45 | not run | 3 |"
    assert f"{line} above (of an earlier protocol) |" in page
    assert "| permuted_mnist | average accuracy | 96.94 | not run | not run |" in page
    assert "protocols" not in page
    assert json.loads((elsewhere / kept.RECORDS).read_text(encoding="utf-8")) == records


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
    assert not (elsewhere / kept.PAGE).exists()


@pytest.mark.parametrize("number", ["0", "-3", "two"])
def test_rows_at_once_are_at_least_one(capsys, number):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--jobs", number])
    assert ended.value.code == 2
    assert f"{number!r}: must be an integer >= 1" in capsys.readouterr().err


def test_rows_that_take_least_time_come_first(elsewhere):
    """A protocol is no row."""
    path = elsewhere / "hsu2018" / "class_si.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("num_seeds: 10", "num_seeds: 10\n  minutes: 2.5"),
        encoding="utf-8",
    )
    names = [found.name for found in kept.rows_of(elsewhere)]
    assert names == ["si2017/permuted_mnist", "hsu2018/class_si"]


def test_protocol_is_what_the_files_say(elsewhere):
    """Of the row and of what it takes in; comments and `expected` are no part of it."""
    name = "hsu2018/class_si"
    path, protocol = elsewhere / f"{name}.yaml", elsewhere / "protocols" / "hsu2018.yaml"
    before = kept.protocol_of(elsewhere, name)
    path.write_text(
        path.read_text(encoding="utf-8").replace("mean: 0.1967", "mean: 0.2") + "# more\n",
        encoding="utf-8",
    )
    assert kept.protocol_of(elsewhere, name) == before
    text = protocol.read_text(encoding="utf-8")
    protocol.write_text(text.replace("lr: 0.001", "lr: 0.002"), encoding="utf-8")
    assert protocol.read_text(encoding="utf-8") != text
    changed = kept.protocol_of(elsewhere, name)
    path.write_text(
        path.read_text(encoding="utf-8").replace("xi: 0.1", "xi: 0.2"), encoding="utf-8"
    )
    assert len({before, changed, kept.protocol_of(elsewhere, name)}) == 3


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"hsu2018/class_si": {"torch": {}}}', '{"hsu2018/class_si": 3}', "NaN"]
)
def test_damaged_records_are_told(elsewhere, capsys, text):
    """In one line, and the file stays as it is; NaN is no number either."""
    path = elsewhere / kept.RECORDS
    if text == "NaN":
        measured = record(1.0, average_accuracy={"mean": float("nan"), "half_width": 0.1})
        text = json.dumps({"hsu2018/class_si": {"torch": measured}})
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is no record of reproductions"):
        kept.Records(elsewhere)
    assert reproduce.main(["--page"]) == 2
    assert capsys.readouterr().err.startswith("error: reproductions/results.json: ")
    assert path.read_text(encoding="utf-8") == text and not (elsewhere / kept.PAGE).exists()
